"""Tensors and plain data in files that hold no code.

Imports nothing of the package. `archives` writes and reads safetensors beside JSON, and trusts
nothing it reads; `json_data` turns parameters and labels into what JSON holds, and back.
"""
