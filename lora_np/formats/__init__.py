r"""Files of other people: checkpoints and adapters as mappings from names to arrays, read when they are used.

    disk, tensors, writing       safetensors, single and sharded, in and out
    zipped, pickles, archive     PyTorch's .bin and .pt, without PyTorch and without running anything
    gguf                         llama.cpp's models and adapters
    names, huggingface           our names and sizes <-> theirs, a table a family
    updates                      what an adapter does to one tensor: rows of it, in a stated order of roundings
    grammar, patterns, placing,  PEFT's names and settings; where factors belong, by names and shapes of the base;
    assembling, sources, views   from the one to the other
    peft, mlx, loralib           the folders and files of each
    adapters, examining          `read_adapter` for all of them; findings that only numbers can give

Nothing in a file is believed before it is checked, and nothing in one is ever executed. Whatever is wrong is a
ValueError or OSError of one line.
"""
