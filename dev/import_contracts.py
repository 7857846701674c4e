"""A contract for import-linter: what a package imports by `from ..name import ...`, unseen by the linter itself."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class ThroughParent(Contract):
    """The modules of `package` reach nothing beside it but `allowed`."""

    package = fields.StringField()
    allowed = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Read every file of the package."""
        folder = Path(find_spec(self.package).submodule_search_locations[0])
        wrong = []
        for path in sorted(folder.rglob("*.py")):
            above = len(path.relative_to(folder).parts) + 1  # dots that lead out of the package
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.level >= above:
                    reached = [node.module] if node.module else [alias.name for alias in node.names]
                    wrong += [
                        f"{path.name}:{node.lineno} imports {name}"
                        for name in reached
                        if node.level > above or name.split(".")[0] not in self.allowed
                    ]
        return ContractCheck(kept=not wrong, metadata={"wrong": wrong})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print the imports that are not allowed."""
        for line in check.metadata["wrong"]:
            output.print_error(f"- {line}")
