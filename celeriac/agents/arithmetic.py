"""Arithmetic, as a model writes it, computed on the event loop: whatever is written, it takes a few milliseconds.

Three bounds make that sure, and nothing is computed before they are looked at: how long and how deep an expression is,
which characters it may be of (no texts, lists or names beyond those here reach Python's parser), and how large a number
may become, each one in between too.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from celeriac.agents.tools import ToolFailed

#: Characters of an expression.
LONGEST: Final = 1000
#: Brackets, signs and powers inside each other. A sum or a product of many is not deep.
DEEPEST: Final = 50
#: Numbers above this are not for a calculator: what is made of them would take long.
LARGEST: Final = 10**300
TOO_LARGE: Final = "a number is too large: they go up to 10**300"
_BITS: Final = LARGEST.bit_length()
_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.,+-*/%() \t\r\n")

#: What people write for what is written otherwise here.
_OTHERWISE: Final = {
    "^": "**",
    "\N{MULTIPLICATION SIGN}": "*",
    "\N{MIDDLE DOT}": "*",
    "\N{DIVISION SIGN}": "/",
    "\N{MINUS SIGN}": "-",
    "\N{EN DASH}": "-",
    "\N{SUPERSCRIPT TWO}": "** 2",
    "\N{SUPERSCRIPT THREE}": "** 3",
    "\N{SQUARE ROOT}": "sqrt(2)",
    "\N{GREEK SMALL LETTER PI}": "pi",
    "!": "factorial(5)",
}
#: What people mean by it Python reads as something else, and computes: 200 * 15% + 3 is 0, max(1,200, 3) is 200.
_PERCENT: Final = re.compile(r"%\s*(?:[-+*/%),]|of\b|$)")
_THOUSANDS: Final = re.compile(r"(?<![\d._])(\d+),(\d{3})(?![\d_])")

Number = int | float


def _power(base: Number, exponent: Number) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and (abs(base).bit_length() - 1) * exponent > _BITS:
        raise ToolFailed(TOO_LARGE)
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
#: How many arguments they take, where it is not one: at least, and at most.
ARGUMENTS: Final = {"log": (1, 2), "max": (2, LONGEST), "min": (2, LONGEST), "round": (1, 2)}
NAMES: Final = {"pi": math.pi, "e": math.e}
#: For the model.
KNOWN: Final = f"the functions are {' '.join(FUNCTIONS)}, the constants {' '.join(NAMES)}"


def compute(expression: str) -> Number:
    """Raises ToolFailed, with words for the model."""
    if len(expression) > LONGEST:
        raise _refused(f"it has more than {LONGEST} characters")
    _check_writing(expression)
    _check_depth(expression)
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body, 0)
    except (RecursionError, MemoryError) as error:
        raise _refused("it is nested too deep") from error
    except SyntaxError as error:
        raise _refused(error.msg) from error
    except OverflowError as error:
        raise ToolFailed(TOO_LARGE) from error
    except (ValueError, TypeError, ArithmeticError) as error:
        raise _refused(str(error)) from error


def _refused(why: str) -> ToolFailed:
    return ToolFailed(f"that cannot be computed: {why}")


def _check_writing(expression: str) -> None:
    """What would be read otherwise than it is meant is not read."""
    for character in expression:
        if character in _OTHERWISE:
            raise _refused(f"write {_OTHERWISE[character]} instead of {character}")
        if character not in _CHARACTERS:
            raise _refused(f"it holds more than numbers, names, brackets and + - * / // % **: {character}")
    if _PERCENT.search(expression):
        raise _refused("write 15/100 for 15%: % is the remainder of a division")
    if found := _THOUSANDS.search(expression):
        whole, rest = found.groups()
        raise _refused(f"write {whole}{rest}, without commas; of two arguments, {whole}, {rest} with a space")


def _check_depth(expression: str) -> None:
    """Before it is parsed: what is deep takes the parser long."""
    depth = 0
    for character in expression:
        depth += (character == "(") - (character == ")")
        if depth > DEEPEST:
            raise _refused("it is nested too deep")


def _value(node: ast.AST, depth: int) -> Number:
    if depth > DEEPEST:
        raise _refused("it is nested too deep")
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
            return _number(_called(name, [_value(argument, depth + 1) for argument in arguments]))
        case ast.Name(id=name) if name in FUNCTIONS:
            raise _refused(f"{name} is a function: write {name}(...)")
        case ast.Name(id=name) | ast.Call(func=ast.Name(id=name)):
            raise _refused(f"there is no {name}, or it is used otherwise; {KNOWN}")
        case ast.Call():
            raise _refused("write * between a number and a bracket")
        case ast.Tuple():
            raise _refused("a comma stands between the arguments of a function alone; a fraction is written 1.5")
    raise _refused("it holds an operator that is none of + - * / // % **")


def _called(name: str, arguments: list[Number]) -> Any:
    least, most = ARGUMENTS.get(name, (1, 1))
    if not least <= len(arguments) <= most:
        takes = {1: "one argument", 2: "one or two arguments", LONGEST: "two arguments or more"}[most]
        raise _refused(f"{name} takes {takes}, and was given {len(arguments)}")
    try:
        return FUNCTIONS[name](*arguments)
    except TypeError as error:
        raise _refused(f"{name} takes whole numbers there") from error
    except ValueError as error:
        raise _refused(f"{name} is not defined there") from error


def _operator(sign: ast.AST) -> Callable[..., Any]:
    if (found := OPERATORS.get(type(sign))) is None:
        raise _refused("it holds an operator that is none of + - * / // % **")
    return found


def _number(made: Any) -> Number:
    """What was made, or written: a number, and none that is too large."""
    if isinstance(made, bool) or not isinstance(made, Number):
        raise ToolFailed("only real numbers can be computed")
    # What is no number (nan) is not below either.
    if not abs(made) <= LARGEST:
        raise ToolFailed(TOO_LARGE)
    return made
