"""One engine for several processes, over Arrow Flight: by hand on a port, or one per machine behind a private socket.

Importing this package loads neither pyarrow.flight nor torch.
"""
