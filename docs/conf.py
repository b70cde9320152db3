"""The book: `python -m sphinx -W --keep-going -q -c docs . build/book`, from the root of the repository.

The root is the source, so that what links to what on GitHub does so in the book: notebooks as they were executed, the
pages of `docs/`, and files of Python as pages (`book.annotated`). Nothing is executed, copied or fetched.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from lora_np.version import __version__  # noqa: E402

project = "lora_np"
author = "lora_np contributors"
project_copyright = "lora_np contributors, MIT license"
version = release = __version__
language = "en"
smartquotes = False  # (..., d_in) is a shape and keeps its three dots

root_doc = "docs/index"
extensions = ["myst_nb", "book.annotated", "book.mathml", "book.reference", "book.pages"]
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "tutorials/*.md",
    "tutorials/*.ipynb",
    "tutorials/*/*.ipynb",
    "lora_np/pretrained/README.md",
    "lora_np/operations/*.py",
    "lora_np/methods/__init__.py",
    "lora_np/methods/lora.py",
    "lora_np/engine/devices.py",
    "lora_np/engine/differentiation.py",
    *(
        f"lora_np/{name}.py"
        for name in (
            *("certificate", "config", "files", "generation", "gradients", "lora", "model", "optimization"),
            *("parameters", "rounding", "textbook", "training", "version", "wrappers"),
        )
    ),
]
exclude_patterns = [".*", "build", "lora-study", "**/.ipynb_checkpoints"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # types of NumPy and of the standard library, which are not in this book

nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "dollarmath", "amsmath"]
myst_dmath_allow_labels = False
myst_heading_anchors = 4
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]

html_theme = "furo"
html_title = "lora_np"
html_math_renderer = "mathml"
html_static_path = ["book/static"]
html_css_files = ["book.css"]
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
python_maximum_signature_line_length = 60
add_module_names = False
