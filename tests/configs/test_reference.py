"""The reference of config fields: complete, explained, and true where it states a number."""

import re
import tokenize

import jax

from configs import default, reference
from model.config import model_config
from model.heads import language_model, parameter_count


def flat(tree, prefix=""):
    for name, value in tree.items():
        yield from flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]


def test_the_reference_has_every_field_with_its_default_and_a_meaning():
    assert {field.name: field.default for field in reference.fields()} == dict(flat(default.get_config().to_dict()))
    assert all(len(field.meaning) >= 10 for field in reference.fields())
    titles = reference.titles()
    assert set(titles) == {field.section for field in reference.fields()} and all(titles.values())


def test_a_heading_is_not_part_of_the_meaning_of_the_field_below_it():
    meanings = {field.name: field.meaning for field in reference.fields()}
    assert meanings["model.compute_dtype"].startswith('"float32" or "bfloat16"')
    assert meanings["optimizer.clip_norm"] == "clip the gradient to this global norm; 0: off"


def test_no_comment_of_the_default_config_stands_alone_inside_parentheses():
    """A formatter moves a comment that makes a line too long into parentheses around the value."""
    depth = 0
    with open(default.__file__) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.OP:
                depth += (token.string in "([{") - (token.string in ")]}")
            assert token.type != tokenize.COMMENT or depth == 0, token.line


def test_the_default_model_has_as_many_parameters_as_its_docstring_states():
    millions, vocabulary = re.search(r"about ([\d.]+) million .* an ([\d,]+)-token", default.model.__doc__).groups()
    section = default.model().to_dict() | {"vocab_size": int(vocabulary.replace(",", "")), "context_length": 256}
    count = parameter_count(jax.eval_shape(language_model(model_config(section)).init, jax.random.key(0)))
    assert f"{count / 1e6:.1f}" == millions
