"""The house stands as drawn: imports run one way, and the commands that plan and bill never need torch."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "src" / "shoestring"

# Left may not import right. A module that stands nowhere here fails the test: give it its place.
LAYERS: list[set[str]] = [
    {"records", "answers", "stats", "scaling", "trees", "allocator", "tables", "terms", "windows"},
    {"estimate"},
    {"recipe", "native"},
    {"cost", "data", "rewards", "models", "generate", "train", "distributed"},
    {"stages"},
    {"report", "serve"},
    {"pipeline", "plan", "plan_json", "plan_terms", "alternatives", "left_out", "compile", "compile_text", "lease", "probe", "export", "card", "threads", "opening", "progress", "watchdog"},  # pipeline.py and the parts that it is made of
    {"ablate"},
    {"cli", "commands"},
]
APART = LAYERS[3]  # these take one another's objects as arguments
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
MAY_PRICE = {"cost", "report", "ablate", "cli", "commands"} | LAYERS[6]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(p): p for p in sorted(ROOT.rglob("*.py"))}


def imports(name: str, source: str) -> set[str]:
    """Modules of ours that `source` (of module `name`) imports, anywhere in it; TYPE_CHECKING blocks are left out."""
    tree = ast.parse(source)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for part in node.body
        for inner in ast.walk(part)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name if name in MODULES and MODULES[name].stem == "__init__" else name.rpartition(".")[0]
                base = importlib.util.resolve_name("." * node.level + base, package)
            for a in node.names:
                full = f"{base}.{a.name}"
                found.add(full if full in MODULES else base)
    return {m for m in found if m == "shoestring" or m.startswith("shoestring.")}


def part(module: str) -> str:
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else ""


def wrong(name: str, target: str) -> str | None:
    """Why module `name` may not import `target`; None if it may."""
    a, b = part(name), part(target)
    if not a or not b or a == b:
        return None
    if RANK[b] > RANK[a]:
        return f"{name} imports {target}, which stands to its right"
    if a in APART and b in APART:
        return f"{name} imports {target}: packages of this layer do not import one another"
    if b == "cost" and a not in MAY_PRICE:
        return f"{name} imports {target}: only pipeline, ablate, report and cli know prices"
    return None


def test_every_module_has_its_place() -> None:
    homeless = {part(m) for m in MODULES} - RANK.keys() - {""}
    assert not homeless, f"give {sorted(homeless)} a layer in tests/test_layers.py and in docs/architecture.md"


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name: str) -> None:
    found = [w for t in sorted(imports(name, MODULES[name].read_text())) if (w := wrong(name, t))]
    assert not found, "\n".join(found)


def test_stages_never_import_one_another() -> None:
    stages = {m for m in MODULES if part(m) == "stages" and m.count(".") == 2}
    own = {m for m in stages if "\nclass Config" in MODULES[m].read_text()}
    assert len(own) >= 5
    for m in stages:
        assert not imports(m, MODULES[m].read_text()) & own, f"{m} imports a stage"


def test_the_walk_sees_what_it_should() -> None:
    """The rules by examples, so that a hole in the walk is seen."""
    tries = {
        ("train.step", "def f():\n    from shoestring.models import decoder"): "do not import one another",
        ("train.step", "from ..generate.engine import Engine"): "do not import one another",
        ("records", "import shoestring.estimate.flops"): "to its right",
        ("stages.sft", "from shoestring import cost"): "know prices",
        ("stages.sft", "from shoestring.cost.ledger import Ledger"): "know prices",
        ("distributed.mesh", "from shoestring.models.decoder import Decoder"): "do not import one another",
        ("data.packing", "from shoestring.recipe import load"): None,
        ("pipeline", "from shoestring.cost.ledger import Ledger"): None,
        ("stages.workbench", "if TYPE_CHECKING:\n    from shoestring.cost.ledger import Ledger"): None,
    }
    for (name, source), why in tries.items():
        name = f"shoestring.{name}"
        found = [w for t in imports(name, source) if (w := wrong(name, t))]
        assert (not found) if why is None else (len(found) == 1 and why in found[0]), (name, source, found)


HIDE = """
import importlib, importlib.abc, sys
HIDDEN = {"torch", "transformers", "safetensors", "gguf", "numpy"}
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            raise ImportError(f"{name} is hidden")
sys.meta_path.insert(0, Hide())
for name in sys.argv[1:]:
    importlib.import_module(name)
assert not HIDDEN & {m.split(".")[0] for m in sys.modules}
"""
TORCH_FREE = LAYERS[0] | LAYERS[1] | (LAYERS[2] - {"native"}) | {"cost", "rewards", "stages", "report", "plan", "plan_json", "plan_terms", "alternatives", "left_out", "compile", "compile_text", "lease", "threads", "card", "cli", "commands"}


def test_planning_and_billing_import_without_torch() -> None:
    """Also without numpy, which comes with the train extra: importing a stage module is enough for the plan."""
    wanted = [m for m in MODULES if part(m) in TORCH_FREE or m == "shoestring"]
    assert any(m.startswith("shoestring.stages.") for m in wanted)
    done = subprocess.run([sys.executable, "-c", HIDE, *wanted], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-1500:]


def test_the_blocker_blocks() -> None:
    done = subprocess.run([sys.executable, "-c", HIDE, "shoestring.train.step"], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "is hidden" in done.stderr
