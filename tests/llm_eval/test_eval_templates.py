from lm_eval import utils

from llm_eval.harness.templates import compiled_once


def test_a_template_is_compiled_once_and_the_harness_is_as_before_afterwards():
    plain = vars(utils.env).copy()
    template = "{{question}}? {{choices[answer]}}"
    doc = {"question": "which", "choices": ["a", "b"], "answer": 1}
    before = utils.apply_template(template, doc)
    with compiled_once():
        assert utils.env.from_string(template) is utils.env.from_string(template)
        # Of another document: nothing of the first is kept but the program.
        assert utils.apply_template(template, doc) == before == "which? b"
        assert utils.apply_template(template, doc | {"answer": 0}) == "which? a"
    assert utils.env.from_string(template) is not utils.env.from_string(template)
    assert vars(utils.env).keys() == plain.keys()
