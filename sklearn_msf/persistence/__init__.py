"""Tensors and plain data in files that hold no code.

Imports nothing from the rest of the package but `exceptions`. `archives` writes and reads
safetensors files with a JSON file beside them, and checks everything it reads. `whole_files` writes
a file completely or not at all, whoever else writes to the folder. `json_data` converts parameters
and labels to data that JSON can hold, and back. `limits` says how much a saved model may ask for,
`measured_values` compares what every machine rounds in its own way, and `paths` checks those that
users give. `hub` finds or downloads the files of models on the Hugging Face hub.
"""
