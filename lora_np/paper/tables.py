r"""Figures that the paper's tables print, as data: what the ledger and the errata compute with.

Source: Hu et al. 2021, arXiv:2106.09685v2. Numbers and short names only.
"""

from __future__ import annotations

from collections.abc import Mapping

# Table 1: milliseconds of a forward pass of GPT-2 medium, by (batch, length): base or LoRA, AdapterL, AdapterH
LATENCY: Mapping[tuple[int, int], tuple[str, str, str]] = {
    (32, 512): ("1449.4", "1482.0", "1492.2"),
    (16, 256): ("338.0", "354.8", "366.3"),
    (1, 128): ("19.8", "23.9", "25.8"),
}

# Table 2: MNLI SST-2 MRPC CoLA QNLI QQP RTE STS-B, and the average as printed
GLUE: Mapping[str, tuple[str, str]] = {
    "RoBERTa base, FT": ("87.6 94.8 90.2 63.6 92.8 91.9 78.7 91.2", "86.4"),
    "RoBERTa base, BitFit": ("84.7 93.7 92.7 62.0 91.8 84.0 81.5 90.8", "85.2"),
    "RoBERTa base, AdapterD 0.3M": ("87.1 94.2 88.5 60.8 93.1 90.2 71.5 89.7", "84.4"),
    "RoBERTa base, AdapterD 0.9M": ("87.3 94.7 88.4 62.6 93.0 90.6 75.9 90.3", "85.4"),
    "RoBERTa base, LoRA": ("87.5 95.1 89.7 63.4 93.3 90.8 86.6 91.5", "87.2"),
    "RoBERTa large, FT": ("90.2 96.4 90.9 68.0 94.7 92.2 86.6 92.4", "88.9"),
    "RoBERTa large, LoRA": ("90.6 96.2 90.9 68.2 94.9 91.6 87.4 92.6", "89.0"),
    "RoBERTa large, AdapterP 3.0M": ("90.2 96.1 90.2 68.3 94.8 91.9 83.8 92.1", "88.4"),
    "RoBERTa large, AdapterP 0.8M": ("90.5 96.6 89.7 67.8 94.8 91.7 80.1 91.9", "87.9"),
    "RoBERTa large, AdapterH 6.0M": ("89.9 96.2 88.7 66.5 94.7 92.1 83.4 91.0", "87.8"),
    "RoBERTa large, AdapterH 0.8M": ("90.3 96.3 87.7 66.3 94.7 91.5 72.9 91.5", "86.4"),
    "RoBERTa large, LoRA †": ("90.6 96.2 90.2 68.2 94.8 91.6 85.2 92.3", "88.6"),
    "DeBERTa XXL, FT": ("91.8 97.2 92.0 72.0 96.0 92.7 93.9 92.9", "91.1"),
    "DeBERTa XXL, LoRA": ("91.9 96.9 92.6 72.4 96.0 92.9 94.9 93.0", "91.3"),
}

# Table 4: accuracy on WikiSQL and on MNLI-m, GPT-3
BUDGETS = {"LoRA 4.7M": ("73.4", "91.7"), "LoRA 37.7M": ("74.0", "91.6"), "PreLayer 20.2M": ("70.1", "89.5")}

# Table 5: {targets: (rank, WikiSQL, MNLI-m)}, GPT-3 at one budget
PLACEMENTS = {
    "q": (8, "70.4", "91.0"),
    "k": (8, "70.0", "90.8"),
    "v": (8, "73.0", "91.0"),
    "o": (8, "73.2", "91.3"),
    "qk": (4, "71.4", "91.3"),
    "qv": (4, "73.7", "91.3"),
    "qkvo": (2, "73.7", "91.7"),
}

# Table 6: {targets: {rank: (WikiSQL, MNLI-m)}}, GPT-3
RANKS = {
    "q": {1: ("68.8", "90.7"), 2: ("69.6", "90.9"), 4: ("70.5", "91.1"), 8: ("70.4", "90.7"), 64: ("70.0", "90.7")},
    "qv": {1: ("73.4", "91.3"), 2: ("73.3", "91.4"), 4: ("73.7", "91.3"), 8: ("73.8", "91.6"), 64: ("73.5", "91.4")},
    "qkvo": {1: ("74.1", "91.2"), 2: ("73.7", "91.7"), 4: ("74.0", "91.7"), 8: ("74.0", "91.5"), 64: ("73.9", "91.4")},
}

# Table 15: {(targets, rank): (parameters, WikiSQL, MNLI-m)}, LoRA on GPT-3
ANALYSIS = {
    ("v", 2): ("4.7M", "73.4", "91.7"),
    ("qv", 1): ("4.7M", "73.4", "91.3"),
    ("qv", 2): ("9.4M", "73.3", "91.4"),
    ("qkvo", 1): ("9.4M", "74.1", "91.2"),
    ("qv", 4): ("18.8M", "73.7", "91.3"),
    ("qkvo", 2): ("18.8M", "73.7", "91.7"),
    ("qv", 8): ("37.7M", "73.8", "91.6"),
    ("qkvo", 4): ("37.7M", "74.0", "91.7"),
    ("qv", 64): ("301.9M", "73.6", "91.4"),
    ("qkvo", 64): ("603.8M", "73.9", "91.4"),
}
PREFIX_LAYER_MNLI = {"Table 15": "89.5", "Table 16": "89.6"}  # l_p = l_i = 8, the whole of MNLI

# Table 7: norms at rank 4 and 64: (of UᵀWV for ΔW's own directions, W's, random ones; of ΔW), and that of W
NORMS = {4: ("0.32", "21.67", "0.02", "6.91"), 64: ("1.90", "37.71", "0.33", "3.57")}
NORM_OF_W = "61.95"

# Tables 9 to 11: {model: (rank, α)} of LoRA; table 12: learning rates on GPT-3
SCALES = {"RoBERTa base": (8, 8), "RoBERTa large": (8, 16), "DeBERTa XXL": (8, 8), "GPT-2": (4, 32)}
LEARNING_RATES = {
    "FT": "5E-6",
    "PreEmbed": "5E-4",
    "PreLayer": "1E-4",
    "BitFit": "1.6E-3",
    "AdapterH": "1E-4",
    "LoRA": "2E-4",
}
FTTOP2 = ("25.19M", "24M")  # of GPT-2 medium in table 3, and in tables 13 and 14

# What section 7.2 says, and what another place says in its stead
SIDES = {
    "singular vectors of A that φ compares": ("Appendix G", ("right", "left")),
    "name of the output matrix": ("Table 6", ("W_c", "W_o")),
}
# How A and B start: in section 4.1, and in loralib/layers.py
STARTS = {"entries of A": ("Gaussian", "uniform"), "which one of an embedding is zero": ("B", "A")}

# What the paper and the authors' repository (microsoft/LoRA) say of one thing: (paper, repository)
AND_REPOSITORY = {
    "α of RoBERTa base": ("8", "16"),  # table 9; examples/NLU/roberta_base_mnli.sh
    "rank of DeBERTa XXL": ("8", "16"),  # table 10; examples/NLU/deberta_v2_xxlarge_mnli.sh
    "α of DeBERTa XXL": ("8", "32"),  # as above
    "rate on CoLA, RoBERTa large": ("2E-4", "3E-4"),  # table 9; microsoft/LoRA#149
    "length penalty on E2E": ("0.9", "0.8"),  # table 11; examples/NLG/README.md
    "FT of GPT-2 medium on DART": ("46.2", "46.0"),  # table 13; README.md
    "FT of GPT-2 medium on WebNLG, unseen": ("27.7", "30.4"),  # table 14; README.md
    "FT of GPT-2 medium on WebNLG, seen": ("64.2", "63.2"),
    "FT of GPT-2 medium on WebNLG, all": ("46.5", "47.6"),
}
