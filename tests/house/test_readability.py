"""What a page of the product feels like, in numbers; ruff holds the width of lines and the layout.

Docstrings, comments, blank lines, tests and results do not count.
"""

import ast
import io
import tokenize

from tests.helpers import ROOT, listed

NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
# from Python 3.12 on an f-string is many tokens; here it counts as one, as any other string
OPENING = getattr(tokenize, "FSTRING_START", None)
CLOSING = getattr(tokenize, "FSTRING_END", None)
DENSE = 25  # tokens in one line
LONG = 60  # lines of a function


def product():
    """Texts of the product's Python files."""
    others = ROOT / "tests", ROOT / "results"
    return [
        path.read_text()
        for path in listed("*.py")
        if not any(other in path.parents for other in others)
    ]


def docstring_lines(tree):
    """Numbers of the lines that are docstrings."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            text = node.body[0]
            found |= set(range(text.lineno, text.end_lineno + 1))
    return found


def measures(texts):
    """{name of a measure: its value} over the texts of files."""
    lines, comments, long = [], 0, 0
    for text in texts:
        tree = ast.parse(text)
        skipped, tokens, depth = docstring_lines(tree), {}, 0
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            row = token.start[0]
            comments += token.type == tokenize.COMMENT
            if token.type not in NO_CODE and row not in skipped and depth == 0:
                tokens[row] = tokens.get(row, 0) + 1
            depth += (token.type == OPENING) - (token.type == CLOSING)
        lines += tokens.values()
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        long += sum(node.end_lineno - node.lineno + 1 > LONG for node in functions)
    return {
        "tokens": sum(lines),
        "tokens a line": sum(lines) / len(lines),
        "share of dense lines": sum(count >= DENSE for count in lines) / len(lines),
        "comments per 1,000 lines": 1000 * comments / len(lines),
        "long functions": long,
    }


def test_a_line_says_one_thing():
    found = measures(product())
    assert found["tokens a line"] <= 8, found
    assert found["share of dense lines"] <= 0.03, found
    assert found["long functions"] <= 3, found


def test_comments_say_why():
    found = measures(product())
    assert found["comments per 1,000 lines"] >= 60, found


def untyped(texts):
    """Functions that take the settings of a command and do not name their type."""
    functions = [
        node
        for text in texts
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
    ]
    return [
        function.name
        for function in functions
        for taken in function.args.args
        if taken.arg == "asked" and taken.annotation is None
    ]


def test_a_signature_tells_which_settings_it_takes():
    assert untyped(["def f(x, asked): ...\n\ndef g(asked: Settings): ...\n"]) == ["f"]
    assert untyped(product()) == []


def test_the_measures_by_hand():
    text = '"""Doc."""\n\n\ndef f(x):\n    # why\n    return x + 1  # [N]\n'
    found = measures([text])
    # def f ( x ) :   and   return x + 1
    assert found["tokens"] == 10 and found["tokens a line"] == 5
    assert found["comments per 1,000 lines"] == 1000 and found["long functions"] == 0
