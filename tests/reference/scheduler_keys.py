"""The keys of scheduler_config.json that diffusers' classes take, with their defaults."""

import ast
import inspect

from checkpoints import write_json
from samplers import CLASSES


def plain(value):
    """A default as JSON has it; infinities as strings."""
    return str(value) if value in (float("inf"), float("-inf")) else value


def read_beside(kind, taken):
    """Keys that a class reads from its configuration although it does not take them."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(inspect.getmodule(kind)))):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self.config":
            found.add(node.attr)
    return sorted(found - set(taken))


def write_keys(path):
    """{class: {taken: {key: default}, read: [key]}} of the classes that darkroom draws as."""
    found = {}
    for kind in CLASSES.values():
        parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
        taken = {parameter.name: plain(parameter.default) for parameter in parameters}
        found[kind.__name__] = {"taken": taken, "read": read_beside(kind, taken)}
    write_json(path, found)
