"""What `make docs` makes besides the pages of docs/: results, reference, equations.

A hook of MkDocs (mkdocs.yml). `results.md` and a page a study are read from results/,
the reference lists the public names of each package, and equations between dollar signs
become MathML, which browsers show without a script.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# What users import, in the order in which they need it.
PACKAGES = (
    *("policy", "budget", "space", "cost", "search", "transform", "compression"),
    *("post_training", "export.tflite", "export.tfmot", "models", "data", "task"),
    *("attribution", "quantizers", "layers", "latency", "report", "progress"),
)
WORKER = "https://unpkg.com/iframe-worker/shim"
STUDY = re.compile(r"`results/(\w+)/?`")
MATH = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
INLINE_MATH = re.compile(r"(?<![\\$`\w])\$([^$\n`]+?)\$(?!\w)")
NO_PROSE = ("#", "    ", "\n    ", "|", "```", "* ")
FILE_LINK = re.compile(r"\]\((\w+\.(?:png|svg|md))\)")  # to a file beside the README
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are made, not written.

    Args:
        files: MkDocs' files.
        config: MkDocs' configuration.
    """
    from mkdocs.structure.files import File

    for name, text in made_pages().items():
        files.append(File.generated(config, name, content=text))
    for path in sorted((ROOT / "results").glob("*/*")):
        if path.suffix in (".png", ".svg", ".md") and path.name != "README.md":
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links studies to their pages and turns equations into MathML.

    Args:
        markdown: text of a page.
        page: MkDocs' page.
    """
    home = "../" * page.file.src_uri.count("/")
    parts = _outside_code(markdown)
    return "".join(part if code else prose(part, home) for part, code in parts)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Takes the search of pages on disk from the site, where the theme names a server.

    Args:
        output: HTML of a page.
        page: MkDocs' page.
    """
    home = "../" * page.url.count("/")
    return output.replace(WORKER, f"{home}assets/search_worker.js")


def on_post_template(output: str, **_: Any) -> str:
    """The same in the page for what is not there, which lies at the top.

    Args:
        output: HTML, or another text.
    """
    return output.replace(WORKER, "assets/search_worker.js")


def made_pages() -> dict[str, str]:
    """Returns the text of each page that is made."""
    pages = {"results.md": results_page(), "api.md": api_index()}
    for study in studies():
        pages[f"results/{study.name}.md"] = study_page(study)
    seen: set[str] = set()
    for package in ("", *PACKAGES):
        pages[f"api/{package or 'gmpq_tf'}.md"] = api_page(package, seen)
    return pages


def prose(text: str, home: str) -> str:
    """Links and equations of a piece of text without code.

    Args:
        text: Markdown.
        home: the way back to the first page, such as "../".
    """
    from latex2mathml.converter import convert

    def link(match: re.Match[str]) -> str:
        known = (ROOT / "results" / match[1] / "README.md").is_file()
        return f"[{match[0]}]({home}results/{match[1]}.md)" if known else match[0]

    def block(match: re.Match[str]) -> str:
        return f"\n{convert(match[1].strip(), display='block')}\n"

    text = MATH.sub(block, text)
    text = INLINE_MATH.sub(lambda match: convert(match[1]), text)
    return STUDY.sub(link, text)


def studies() -> list[Path]:
    """Returns the folders of results/ in the order of its README, each one."""
    folder = ROOT / "results"
    listed = re.findall(r"^\* `(\w+)/`", read(folder / "README.md"), re.MULTILINE)
    names = [path.parent.name for path in sorted(folder.glob("*/README.md"))]
    return [folder / name for name in dict.fromkeys([*listed, *names]) if name in names]


def results_page() -> str:
    """Returns the page of everything measured, from the files of results/."""
    text = [
        "# What was measured\n",
        "Every number here is read from `results/` when these pages are built. Each "
        "study has its commands, seeds, versions and what was not reached.\n",
    ]
    for study in studies():
        title, lead = title_and_lead(read(study / "README.md"))
        text.append(f"## [{title}](results/{study.name}.md)\n\n{lead}\n")
        text += [table for _, table in tables(study)][:1]
    return "\n".join(text)


def study_page(study: Path) -> str:
    """Returns a study's README, and the rows of its files.

    Args:
        study: its folder.
    """
    text = read(study / "README.md")
    found = list(tables(study))
    if found:
        text += "\n## The files\n"
    for name, table in found:
        text += f"\n`results/{study.name}/{name}`:\n\n{table}\n"
    return FILE_LINK.sub(rf"]({study.name}/\1)", text)


def title_and_lead(text: str) -> tuple[str, str]:
    """Returns a page's title and first paragraph.

    Args:
        text: Markdown.
    """
    title, _, rest = text.partition("\n")
    found = [part for part in re.split(r"\n\n+", rest) if part.strip()]
    prose = [part for part in found if not part.startswith(NO_PROSE)]
    return title.lstrip("# ").strip(), prose[0].strip() if prose else ""


def tables(study: Path) -> Iterator[tuple[str, str]]:
    """Yields (file, table) of each JSON file with rows.

    Args:
        study: folder of the study.
    """
    paths = sorted(study.glob("*.json"), key=lambda path: path.stem != "summary")
    for path in paths:
        rows = rows_of(json.loads(read(path)))
        if rows:
            yield path.name, markdown_table(rows)


def rows_of(found: Any) -> list[dict[str, Any]]:
    """Returns the records of a file that are plain values, if it has any.

    Args:
        found: what a JSON file holds.
    """
    rows = found.get("rows") if isinstance(found, Mapping) else None
    if isinstance(rows, Mapping):
        rows = [{"": k, **v} for k, v in rows.items() if isinstance(v, Mapping)]
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        return []
    plain = [{k: v for k, v in row.items() if _is_plain(v)} for row in rows]
    return plain if len(plain) > 1 else []


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Returns records as a table; a column that no record fills is left out.

    Args:
        rows: records of plain values.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    names = [n for n in names if any(row.get(n) not in (None, True) for row in rows)]
    lines = [" | ".join(name.replace("_", " ") for name in names)]
    lines.append(" | ".join("---" for _ in names))
    lines += [" | ".join(shown(n, row.get(n)) for n in names) for row in rows]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def shown(name: str, value: Any) -> str:
    """Returns a value as a table prints it: shares in per cent, counts with commas.

    Args:
        name: of the column.
        value: a plain value.
    """
    if value is None:
        return ""
    if (
        isinstance(value, float)
        and 0 <= value <= 1
        and ("accuracy" in name or "agree" in name)
    ):
        return f"{100 * value:.2f} %"
    if isinstance(value, bool | str):
        return str(value).replace("|", "\\|")
    whole = isinstance(value, int) or value.is_integer()
    return f"{value:,.0f}" if whole and abs(value) >= 1000 else f"{value:.4g}"


def api_index() -> str:
    """Returns the list of the reference's pages."""
    lines = ["# Reference\n", "Read from the docstrings.\n"]
    for package in ("", *PACKAGES):
        name = f"gmpq_tf.{package}".rstrip(".")
        lead = (ast.get_docstring(module_tree(package)) or "").partition("\n")[0]
        lines.append(f"* [`{name}`](api/{package or 'gmpq_tf'}.md): {lead}")
    return "\n".join(lines)


def api_page(package: str, seen: set[str]) -> str:
    """Returns the directives that fill a package's page.

    Args:
        package: below gmpq_tf; "" for gmpq_tf itself.
        seen: what an earlier page describes, and this one links to; grows.
    """
    name = f"gmpq_tf.{package}".rstrip(".")
    lead = (ast.get_docstring(module_tree(package)) or "").partition("\n")[0]
    names = public_names(package)
    before = [f"[`{n.rpartition('.')[2]}`][{n}]" for n in names if n in seen]
    members = "\n\n".join(f"::: {name}" for name in names if name not in seen)
    seen.update(names)
    if before:
        members = f"Also here: {', '.join(before)}.\n\n{members}"
    return f"# `{name}`\n\n{lead}\n\n{members}\n"


def module_tree(package: str) -> ast.Module:
    """Returns a package's or module's source, parsed.

    Args:
        package: below gmpq_tf, with dots.
    """
    path = package_folder(package)
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(read(path))


def public_names(package: str) -> list[str]:
    """Returns where each public class and function of a package is defined, by name.

    Args:
        package: below gmpq_tf, with dots.
    """
    tree = module_tree(package)
    home = f"gmpq_tf.{package}".rstrip(".")
    names = {node.name: f"{home}.{node.name}" for node in _definitions(tree)}
    if package == "" or package_folder(package).is_dir():
        names |= {n: at for n, m in _imported(tree).items() if (at := defined_at(m))}
    return [at for name, at in sorted(names.items()) if not name.startswith("_")]


def defined_at(name: str) -> str | None:
    """Returns where a class or function is defined; None for what is neither.

    Args:
        name: full, of where it may be imported from.
    """
    module, _, member = name.rpartition(".")
    tree = module_tree(module.removeprefix("gmpq_tf").lstrip("."))
    if any(node.name == member for node in _definitions(tree)):
        return name
    imported = _imported(tree)
    return defined_at(imported[member]) if member in imported else None


def package_folder(package: str) -> Path:
    """Returns the folder of a package, or the path of a module without its suffix.

    Args:
        package: below gmpq_tf, with dots.
    """
    return ROOT.joinpath("gmpq_tf", *package.split("."))


DEFINED = (ast.ClassDef, ast.FunctionDef)


def read(path: Path) -> str:
    """Returns the text of a file.

    Args:
        path: UTF-8.
    """
    return path.read_text(encoding="utf-8")


def _definitions(tree: ast.Module) -> Iterator[Any]:
    return (node for node in tree.body if isinstance(node, DEFINED))


def _imported(tree: ast.Module) -> dict[str, str]:
    """Name -> full name, of what a module imports from this package."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in nodes
        if (node.module or "").startswith("gmpq_tf")
        for alias in node.names
    }


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _outside_code(text: str) -> Iterator[tuple[str, bool]]:
    """Splits a page into (text, whether it is a fenced block)."""
    end = 0
    for match in FENCE.finditer(text):
        yield text[end : match.start()], False
        yield match[0], True
        end = match.end()
    yield text[end:], False
