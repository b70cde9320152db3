r"""Files of other people: checkpoints and adapters as mappings from names to arrays, read when they are used.

    tensors       safetensors, single and sharded            archive     .bin and .pt of PyTorch, without PyTorch
    gguf          llama.cpp's models and adapters            adapters    what an adapter does to each tensor of its base
    names         our names <-> theirs, a table a family     huggingface config.json <-> our sizes

Nothing in a file is believed before it is checked, and nothing in one is ever executed.
"""
