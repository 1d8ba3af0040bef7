"""A search for Python that makes the host wait for the GPU, which CUDA graphs can't capture and which stalls training.

A reading of the source, not of types: parameters annotated ``Tensor`` and comparisons of them are taken for tensors. It
finds the usual ways to wait, not every way.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

# Methods and functions of torch that copy to the host, or whose result has a size that only the device knows.
WAITING = {
    *("item", "tolist", "numpy", "cpu", "nonzero", "argwhere", "is_nonzero", "masked_select", "unique"),
    *("unique_consecutive", "bincount", "equal", "allclose", "synchronize", "wait"),
}
# From the host to the device, from memory that is not pinned.
COPYING = {"tensor", "as_tensor", "from_numpy"}
CONVERSIONS = {"bool", "float", "int"}
TRUTH = {"any", "all"}


@dataclass(frozen=True)
class Wait:
    """Place and reason of a wait. ``function`` is the innermost enclosing one, "" at the top of a module."""

    function: str
    line: int
    what: str


@dataclass
class Scope:
    """A function's names, as far as its source tells."""

    name: str = ""
    tensors: set[str] = field(default_factory=set)  # parameters annotated as tensors
    masks: set[str] = field(default_factory=set)  # assigned from a comparison


def find_waits(source: str) -> list[Wait]:
    """Return every wait in a module's source."""
    return list(_visit(ast.parse(source), Scope()))


def _visit(node: ast.AST, scope: Scope) -> Iterator[Wait]:
    if isinstance(node, ast.FunctionDef):
        parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        tensors = {x.arg for x in parameters if x.annotation and _is_tensor(x.annotation)}
        scope = Scope(node.name, tensors)
    if isinstance(node, ast.Assign) and _is_mask(node.value, scope):
        scope.masks |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    for what in _faults(node, scope):
        yield Wait(scope.name, getattr(node, "lineno", 0), what)
    for child in ast.iter_child_nodes(node):
        yield from _visit(child, scope)


def _faults(node: ast.AST, scope: Scope) -> Iterator[str]:
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        module = node.func.value.id if name and isinstance(node.func.value, ast.Name) else ""
        if name in WAITING:
            yield f".{name}()"
        if name in COPYING and module == "torch":
            yield f"torch.{name}() copies from the host"
        if name == "where" and module == "torch" and len(node.args) == 1:
            yield "torch.where(condition) is nonzero()"
        if name == "to" and any(isinstance(x, ast.Constant) and x.value == "cpu" for x in node.args):
            yield '.to("cpu")'
        if isinstance(node.func, ast.Name) and node.func.id in CONVERSIONS:
            yield from (f"{node.func.id}(tensor)" for x in node.args if _is_value(x, scope))
    if isinstance(node, ast.Subscript) and _is_mask(node.slice, scope):
        yield "indexing with a mask is nonzero()"
    for test in _tests(node):
        if _is_value(test, scope):
            yield "a tensor decides"


def _tests(node: ast.AST) -> Iterator[ast.expr]:
    """Return the expressions converted to bool at this node."""
    if isinstance(node, (ast.If, ast.While, ast.IfExp, ast.Assert)):
        yield node.test
    elif isinstance(node, ast.BoolOp):
        yield from node.values
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.comprehension):
        yield from node.ifs


def _is_tensor(annotation: ast.expr) -> bool:
    return ast.unparse(annotation).replace("torch.", "") in ("Tensor", "Tensor | None")


def _is_value(node: ast.expr, scope: Scope) -> bool:
    """Return whether an expression is a tensor with a value on the device."""
    if isinstance(node, ast.Name):
        return node.id in scope.tensors | scope.masks
    if isinstance(node, ast.Subscript):
        return _is_value(node.value, scope)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr in TRUTH or (
            isinstance(node.func.value, ast.Name)
            and _is_value(node.func.value, scope)
            and node.func.attr in ("sum", "max", "min", "amax", "amin", "mean", "norm")
        )
    if isinstance(node, ast.Compare):
        return _compares_tensors(node, scope)
    return False


def _compares_tensors(node: ast.Compare, scope: Scope) -> bool:
    if any(isinstance(x, (ast.Is, ast.IsNot, ast.In, ast.NotIn)) for x in node.ops):
        return False
    return any(_is_value(side, scope) for side in (node.left, *node.comparators))


def _is_mask(node: ast.expr, scope: Scope) -> bool:
    """Return whether an expression, if a tensor, is a boolean one."""
    if isinstance(node, ast.Name):
        return node.id in scope.masks
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.BitAnd, ast.BitOr, ast.BitXor)):
        return _is_mask(node.left, scope) or _is_mask(node.right, scope)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
        return True
    return isinstance(node, ast.Compare) and _compares_tensors(node, scope)
