"""What `make demo` runs on: a generated table of reviews and a small model trained to answer questions about it."""

from __future__ import annotations

from pathlib import Path

#: Folder of the shipped demo model, in the ordinary Hugging Face layout.
MODEL_FOLDER = Path(__file__).parent / "model"
