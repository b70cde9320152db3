"""The book builds without a warning, every link in it leads somewhere, and every equation in it can be seen.

The equations and the parts of a page are tested wherever their converter is; the book itself where Sphinx is installed
(`pip install -e ".[book]"`), with the command that the README prints.
"""

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))

from book.code import parts_of  # noqa: E402
from book.docstrings import TAG, equations, markdown, pieces  # noqa: E402

if any(importlib.util.find_spec(name) is None for name in ("sphinx", "myst_nb", "furo", "latex2mathml")):
    needs_sphinx = pytest.mark.skip(reason='the book is built with its extra: pip install -e ".[book]"')
else:
    needs_sphinx = pytest.mark.filterwarnings("default")

OPERATIONS = sorted(path for path in (ROOT / "lora_np" / "operations").glob("*.py") if path.stem != "__init__")


# What a page is made of


def test_a_display_is_cut_into_equations_each_with_its_tag() -> None:
    assert pieces(r"a = b \tag{G0}\qquad c = \text{x \qquad y} \tag{G1}") == [
        ("a = b", "G0"),
        (r"c = \text{x \qquad y}", "G1"),
    ]
    assert pieces(r"a = b,\qquad c = d") == [(r"a = b,\qquad c = d", "")]


def test_a_docstring_becomes_the_markdown_of_what_a_terminal_shows() -> None:
    doc = """One sentence, "*.A" in it.

    x (n,)    y (n,)

    one    first
    two    second, and
           more of it

    The square $x^2$ (Z1), and
    $$y = x \\tag{Z2}$$
    says (Z2).

    >>> 1 + 1
    2
    """
    linked = {"Z1": "", "Z2": "{tag}`Z2`"}
    text = markdown(doc, lambda tag: linked.get(tag, ""), equations(doc))
    assert text.splitlines()[0] == r'One sentence, "\*.A" in it.'
    assert "```text\none    first\ntwo    second, and\n       more of it\n```" in text
    assert "$x^2$ ({tagged}`Z1`), and\n\n$$\ny = x \\tag{Z2}\n$$\n\nsays ({tag}`Z2`)." in text
    assert "```pycon\n>>> 1 + 1\n2\n```" in text


def test_a_file_is_cut_into_its_definitions_and_nothing_is_lost() -> None:
    for path in OPERATIONS:
        source = path.read_text(encoding="utf-8")
        _, parts = parts_of(source)
        shown = "\n".join(part.code for part in parts)
        tree = ast.parse(source)
        begins = min(node.lineno for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Assign))
        for node in tree.body:
            if node.lineno >= begins and isinstance(node, ast.Assign):
                assert ast.get_source_segment(source, node) in shown
        assert [part.name for part in parts if part.name] == [
            node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)
        ]


def test_overloads_are_one_part_with_what_they_lead_to() -> None:
    overloads = "".join(f"@overload\ndef f(x: {kind}) -> {kind}: ...\n" for kind in ("int", "str"))
    _, parts = parts_of(overloads + "def f(x):\n    'Twice.'\n    return 2 * x\n")
    assert [(part.name, part.doc, part.code.count("overload")) for part in parts] == [("f", "Twice.", 2)]


def tags_of_the_code(source: str) -> set[str]:
    """The tags that the comments of a file bear."""
    comments = re.findall(r"  # (.*)$", source, re.MULTILINE)
    return {tag for comment in comments for group in re.findall(r"\(([^()]*)\)", comment) for tag in _whole(group)}


def _whole(group: str) -> list[str]:
    return re.findall(TAG, group) if re.fullmatch(rf"{TAG}(, {TAG})*", group) else []


@pytest.mark.parametrize("path", OPERATIONS, ids=lambda path: path.stem)
def test_every_tag_on_a_line_of_a_derivation_has_its_equation(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    here = set(equations(parts_of(source)[0]))
    linear = set(equations(parts_of((path.parent / "linear.py").read_text(encoding="utf-8"))[0]))
    tags = tags_of_the_code(source)
    assert tags
    assert tags <= here | linear


# The book


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book as the README's command builds it, in another folder."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    line = re.search(r"<!-- command: book -->\n```bash\n.*?&& (python -m sphinx .*?)\n```", readme, re.DOTALL)
    assert line, "README.md has no command that builds the book"
    _, *arguments, _ = shlex.split(line[1])
    out = tmp_path_factory.mktemp("book") / "html"
    program = [sys.executable, *arguments, str(out), "-d", str(out.parent / "doctrees")]
    built = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return out


class Seen(HTMLParser):
    """What a page points to, what can be pointed to, and its equations."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.equations = 0
        self.tables = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [found[name] or "" for name in ("id", "name") if found.get(name)]
        self.links += [(tag, found[name] or "") for name in ("href", "src") if found.get(name)]
        self.equations += tag == "math"
        self.tables += tag == "table"


def broken(folder: Path) -> list[str]:
    """Every link within the book that leads to no file or no place, and all that a page fetches from elsewhere."""
    pages = {path: Seen(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}
    found = []
    for page, seen in pages.items():
        for tag, address in seen.links:
            if re.match(r"(?:https?:)?//", address):
                if tag != "a":
                    found.append(f"{page.relative_to(folder)} fetches {address}")
                continue
            if re.match(r"(?:mailto|data):", address):
                continue
            name, _, place = address.partition("#")
            target = page if not name else (page.parent / unquote(name.partition("?")[0])).resolve()
            leads = target in pages or target.is_file()
            if not leads or (place and target in pages and unquote(place) not in pages[target].ids):
                found.append(f"{page.relative_to(folder)} leads to {address}")
    elsewhere = re.compile(r"url\(\s*[\"']?(?:https?:)?//")
    styles = [path for path in folder.rglob("*.css") if elsewhere.search(path.read_text("utf-8"))]
    return found + [f"{path.relative_to(folder)} fetches something" for path in styles]


def test_a_broken_link_and_a_thing_from_elsewhere_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#there">b</a><a href="https://arxiv.org">c</a><p id="here">')
    (tmp_path / "b.html").write_text('<p id="there"><a href="a.html#here">a</a>')
    assert broken(tmp_path) == []
    (tmp_path / "b.html").write_text('<a href="c.html">c</a><a href="a.html#gone">a</a><script src="https://x.y/z.js">')
    assert sorted(broken(tmp_path)) == [
        "a.html leads to b.html#there",
        "b.html fetches https://x.y/z.js",
        "b.html leads to a.html#gone",
        "b.html leads to c.html",
    ]


@needs_sphinx
def test_every_link_of_the_book_leads_somewhere_and_nothing_is_fetched(book: Path) -> None:
    assert len(list(book.rglob("*.html"))) > 60
    assert broken(book) == []


@needs_sphinx
def test_every_notebook_and_every_page_of_the_documentation_is_in_the_book(book: Path) -> None:
    sources = [*ROOT.glob("docs/*.md"), *ROOT.glob("tutorials/*.md"), *OPERATIONS]
    sources += [path for path in ROOT.glob("tutorials/**/*.ipynb") if ".ipynb_checkpoints" not in path.parts]
    missing = [path for path in sources if not (book / path.relative_to(ROOT).with_suffix(".html")).exists()]
    assert missing == []


@needs_sphinx
def test_every_equation_of_the_book_is_mathematics_and_not_its_source(book: Path) -> None:
    pages = [path.read_text(encoding="utf-8") for path in book.rglob("*.html")]
    assert sum(Seen(page).equations for page in pages) > 500
    for page in pages:
        said = re.sub(r"(?s)<pre>.*?</pre>|<code.*?</code>", "", page)
        assert not re.search(r"\$\$|\\(?:frac|partial|tag|sum)\b", said)


@needs_sphinx
@pytest.mark.parametrize("path", OPERATIONS, ids=lambda path: path.stem)
def test_every_tag_on_a_line_of_the_book_leads_to_its_equation(book: Path, path: Path) -> None:
    page = (book / path.relative_to(ROOT).with_suffix(".html")).read_text(encoding="utf-8")
    code = "".join(re.findall(r'(?s)<div class="lines">.*?</pre>', page))
    linked = set(re.findall(rf'href="[^"]*#eq-({TAG})"', code))
    assert linked == tags_of_the_code(path.read_text(encoding="utf-8"))


@needs_sphinx
def test_every_table_stands_where_it_can_scroll(book: Path) -> None:
    page = (book / "docs" / "ledger.html").read_text(encoding="utf-8")
    assert Seen(page).tables
    assert page.count("<table") == len(re.findall(r'<div class="table-wrapper[^>]*>\s*<table', page))


@needs_sphinx
def test_every_public_name_stands_in_the_reference_with_its_example(book: Path) -> None:
    import lora_np

    page = (book / "docs" / "reference.html").read_text(encoding="utf-8")
    places = Seen(page).ids
    assert [name for name in lora_np.__all__ if f"lora_np.{name}" not in places] == []
    assert page.count("highlight-pycon") >= len(lora_np.__all__)


@needs_sphinx
def test_an_equation_that_cannot_be_said_is_refused_and_said_as_tex_says_it() -> None:
    from book.mathml import in_parts, mathml

    with pytest.raises(ValueError, match=r"unknown command \\nonsense"):
        mathml(r"a = \nonsense b", display=True)
    half = mathml(r"\tfrac12 x", display=True)
    assert "<mfrac><mn>1</mn><mn>2</mn></mfrac>" in half
    assert in_parts(r"a = b,\qquad \text{c \qquad d}") == ["a = b,", r" \text{c \qquad d}"]
