"""Kernels for CPUs in C++, compiled by the machine's own compiler when they are first used.

They take the arguments of the Triton kernels of the same names and give the same results, in float32 and bfloat16.
`library.load` says whether there are any: without a compiler the engine runs torch's operators.
"""
