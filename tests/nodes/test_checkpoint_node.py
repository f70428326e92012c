"""The loader node: what it says of a file that does not name its variant, and that a replaced file is loaded again."""

import os

import pytest
from synthetic import TINY, head_widths, write_checkpoint

NAME = "unnamed.safetensors"


@pytest.fixture
def sent(tmp_path, monkeypatch):
    """A models folder with a file that does not say which model it is, and the texts that nodes show."""
    import folder_paths
    from server import PromptServer

    write_checkpoint(tmp_path / NAME, metadata=head_widths(TINY))
    folder_paths.add_model_folder_path("checkpoints", str(tmp_path))
    texts = []
    server = type("Server", (), {"send_progress_text": lambda self, text, node: texts.append(text)})()
    monkeypatch.setattr(PromptServer, "instance", server, raising=False)
    yield texts
    folder_paths.folder_names_and_paths["checkpoints"][0].remove(str(tmp_path))


@pytest.mark.parametrize(("variant", "shown"), [("from file", 1), ("svd_xt", 0)])
def test_a_variant_that_is_assumed_is_said_on_the_node(pack, sent, variant, shown):
    import nodes

    clone = nodes.NODE_CLASS_MAPPINGS["StableVideoCheckpointLoader"].PREPARE_CLASS_CLONE(None)
    clone.hidden.unique_id = "7"
    clone.execute(NAME, variant)
    assert len(sent) == shown
    assert all("14 frames is assumed" in text and "choose a variant to be sure" in text for text in sent)


def test_a_replaced_file_is_loaded_again(pack, sent, tmp_path):
    import nodes

    node = nodes.NODE_CLASS_MAPPINGS["StableVideoCheckpointLoader"]
    before = node.fingerprint_inputs(NAME, "from file")
    assert before and node.fingerprint_inputs(NAME, "from file") == before
    os.utime(tmp_path / NAME, ns=(0, 1))
    assert node.fingerprint_inputs(NAME, "from file") != before
    assert node.fingerprint_inputs("lost.safetensors", "from file") == ()
