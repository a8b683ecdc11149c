"""Arithmetic, as a model writes it, computed on the event loop: whatever is written, it takes a few milliseconds.

Three bounds make that sure, and nothing is computed before they are looked at: how long and how deep an expression is,
which characters it may be of (no texts, lists or names beyond those here reach Python's parser), and how large a number
may become, each one in between too.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

from celeriac.agents.tools import ToolFailed

#: Characters of an expression.
LONGEST: Final = 1000
#: Brackets, signs and powers inside each other. A sum or a product of many is not deep.
DEEPEST: Final = 50
#: Numbers above this are not for a calculator: what is made of them would take long.
LARGEST: Final = 10**300
_BITS: Final = LARGEST.bit_length()
_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.,+-*/%() \t\r\n")

Number = int | float


def _power(base: Number, exponent: Number) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and (abs(base).bit_length() - 1) * exponent > _BITS:
        raise ToolFailed("a number is too large")
    return base**exponent


def _factorial(number: Any) -> int:
    if number > 150:
        raise ToolFailed("the factorial is too large: they go up to 150")
    return math.factorial(number)


def _round(number: Number, digits: Any = None) -> Any:
    if digits is not None and abs(digits) > 300:
        raise ToolFailed("numbers are rounded to 300 digits at most")
    return round(number, digits)


OPERATORS: Final[Mapping[type[ast.AST], Callable[..., Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "abs": abs,
    "ceil": math.ceil,
    "cos": math.cos,
    "exp": math.exp,
    "factorial": _factorial,
    "floor": math.floor,
    "log": math.log,
    "log10": math.log10,
    "max": max,
    "min": min,
    "round": _round,
    "sin": math.sin,
    "sqrt": math.sqrt,
    "tan": math.tan,
}
NAMES: Final = {"pi": math.pi, "e": math.e}


def compute(expression: str) -> Number:
    """Raises ToolFailed, with words for the model."""
    if len(expression) > LONGEST:
        raise ToolFailed(f"that cannot be computed: it has more than {LONGEST} characters")
    if not _CHARACTERS.issuperset(expression):
        raise ToolFailed("that cannot be computed: it holds more than numbers, names, brackets and + - * / // % **")
    _check_depth(expression)
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body, 0)
    except (RecursionError, MemoryError) as error:
        raise ToolFailed("that cannot be computed: it is nested too deep") from error
    except SyntaxError as error:
        raise ToolFailed(f"that cannot be computed: {error.msg}") from error
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ToolFailed(f"that cannot be computed: {error}") from error


def _check_depth(expression: str) -> None:
    """Before it is parsed: what is deep takes the parser long."""
    depth = 0
    for character in expression:
        depth += (character == "(") - (character == ")")
        if depth > DEEPEST:
            raise ToolFailed("that cannot be computed: it is nested too deep")


def _value(node: ast.AST, depth: int) -> Number:
    if depth > DEEPEST:
        raise ToolFailed("that cannot be computed: it is nested too deep")
    match node:
        case ast.Constant(value=value):
            return _number(value)
        case ast.Name(id=name) if name in NAMES:
            return NAMES[name]
        case ast.UnaryOp(op=sign, operand=operand):
            return _number(_operator(sign)(_value(operand, depth + 1)))
        case ast.BinOp():
            # A sum of many leans to the left, one inside the other: it is walked down, and not into.
            terms: list[tuple[ast.operator, ast.expr]] = []
            left: ast.expr = node
            while isinstance(left, ast.BinOp):
                terms.append((left.op, left.right))
                left = left.left
            value = _value(left, depth + 1)
            for kind, right in reversed(terms):
                value = _number(_operator(kind)(value, _value(right, depth + 1)))
            return value
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            return _number(FUNCTIONS[name](*[_value(argument, depth + 1) for argument in arguments]))
        case ast.Name(id=name) | ast.Call(func=ast.Name(id=name)):
            raise ToolFailed(f"that cannot be computed: there is no {name}, or it is used otherwise")
    raise ToolFailed("that cannot be computed: it holds an operator that is none of + - * / // % **")


def _operator(sign: ast.AST) -> Callable[..., Any]:
    if (found := OPERATORS.get(type(sign))) is None:
        raise ToolFailed("that cannot be computed: it holds an operator that is none of + - * / // % **")
    return found


def _number(made: Any) -> Number:
    """What was made, or written: a number, and none that is too large."""
    if isinstance(made, bool) or not isinstance(made, Number):
        raise ToolFailed("only numbers can be computed")
    if isinstance(made, int) and abs(made) > LARGEST:
        raise ToolFailed("a number is too large")
    return made
