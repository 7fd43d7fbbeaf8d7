"""`where`: a filter on manifest columns, written as text, read as an Arrow expression.

    width >= 512 and license in ["cc0", "cc-by"] and not (source == "test" or caption == None)

Read with Python's `ast` and never evaluated: names are columns (`image.path` a field of a struct), values
are literals. As in SQL a comparison with null is null, and a row whose filter is null is left out;
`x == None` and `x != None` ask for null itself.
"""

from __future__ import annotations

import ast
import functools
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from annotator.errors import JobError

_COMPARE: dict[type[ast.cmpop], Callable[[pc.Expression, pc.Expression], pc.Expression]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_LONGEST = 2000  # characters: Python's own parser must not be drowned
_HELP = "expected comparisons of columns with values, in [...], and, or, not"


@dataclass(frozen=True, slots=True)
class Where:
    """A filter: its text in one spelling, the Arrow expression, the Parquet columns it reads ("image.path")."""

    text: str
    expression: pc.Expression
    leaves: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The table columns that hold what it reads."""
        return tuple(dict.fromkeys(leaf.split(".")[0] for leaf in self.leaves))

    def bind(self, schema: pa.Schema) -> None:
        """Check the filter against a table's columns. Raises JobError for a type that does not fit."""
        try:
            schema.empty_table().filter(self.expression)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, pa.ArrowKeyError) as err:
            types = ", ".join(f"{name} is {schema.field(name).type}" for name in self.columns)
            raise JobError(
                f"where: {self.text!r} does not fit the manifest's columns ({types}): {_line(err)}"
            ) from None


@functools.lru_cache(maxsize=16)
def parse_where(text: str) -> Where:
    """Return the filter that the text describes. Raises JobError with the place that was not understood."""
    if len(text) > _LONGEST:
        raise JobError(f"where: {len(text)} characters; expected at most {_LONGEST}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in strings
            tree = ast.parse(text.strip(), mode="eval")
        parser = _Parser(text.strip())
        expression = parser.condition(tree.body)
    except SyntaxError as err:
        raise JobError(f"where: {text!r}: not understood at column {err.offset or 1}: {err.msg}; {_HELP}") from None
    except (ValueError, RecursionError, MemoryError) as err:
        raise JobError(f"where: {text[:80]!r}: {_line(err)}; {_HELP}") from None
    if not parser.leaves:
        raise JobError(f"where: {text!r} names no column; {_HELP}")
    return Where(ast.unparse(tree), expression, tuple(dict.fromkeys(parser.leaves)))


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self.leaves: list[str] = []

    def condition(self, node: ast.expr) -> pc.Expression:
        """Return the expression of something that is true or false."""
        if isinstance(node, ast.BoolOp):
            join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
            return functools.reduce(join, [self.condition(value) for value in node.values])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.condition(node.operand)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            pairs = zip(sides, node.ops, sides[1:], strict=False)
            return functools.reduce(operator.and_, [self._compare(*pair) for pair in pairs])
        if isinstance(node, (ast.Name, ast.Attribute)):
            return self._column(node)
        raise self._error(node, "is no condition")

    def _compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pc.Expression:
        if isinstance(op, (ast.In, ast.NotIn)):
            column = self._column(left)
            if not isinstance(right, (ast.List, ast.Tuple, ast.Set)):
                raise self._error(right, "is no list of values")
            values = [self._literal(item) for item in right.elts]
            if not values or None in values or len({type(value) for value in values}) > 1:
                raise self._error(right, "expected one or more values of one type, none of them None")
            found = column.isin(values)
            return found if isinstance(op, ast.In) else column.is_valid() & ~found
        if isinstance(op, (ast.Eq, ast.NotEq, ast.Is, ast.IsNot)) and (_is_none(left) or _is_none(right)):
            column = self._column(left if _is_none(right) else right)
            return column.is_null() if isinstance(op, (ast.Eq, ast.Is)) else column.is_valid()
        if type(op) not in _COMPARE or _is_none(left) or _is_none(right):
            raise self._error(right, "can't be compared so")
        return _COMPARE[type(op)](self._value(left), self._value(right))

    def _value(self, node: ast.expr) -> pc.Expression:
        if isinstance(node, (ast.Name, ast.Attribute)):
            return self._column(node)
        return pc.scalar(self._literal(node))

    def _column(self, node: ast.expr) -> pc.Expression:
        path: list[str] = []
        inner = node
        while isinstance(inner, ast.Attribute):
            path.insert(0, inner.attr)
            inner = inner.value
        if not isinstance(inner, ast.Name):
            raise self._error(node, "is no column")
        self.leaves.append(".".join([inner.id, *path]))
        return pc.field(inner.id, *path)

    def _literal(self, node: ast.expr) -> bool | int | float | str | None:
        if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float, str, type(None))):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            number = self._literal(node.operand)
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                return -number
        raise self._error(node, "is no column and no value")

    def _error(self, node: ast.expr, why: str) -> JobError:
        part = ast.get_source_segment(self._text, node) or ""
        return JobError(f"where: {self._text!r}: {part!r} at column {node.col_offset + 1} {why}; {_HELP}")


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
