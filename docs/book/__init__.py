"""What the book needs beside Sphinx and myst-nb: docstrings as Markdown, code beside its derivation, equations."""
