"""The loader node: what it says of a file that does not name its variant, and that a replaced file is loaded again."""

import os

import pytest
from synthetic import TINY, head_widths, write_checkpoint

NAME = "unnamed.safetensors"


@pytest.fixture
def unnamed(pack, tmp_path):
    """A file, in a models folder, that does not say which model it is."""
    import folder_paths

    write_checkpoint(tmp_path / NAME, metadata=head_widths(TINY))
    folder_paths.add_model_folder_path("checkpoints", str(tmp_path))
    yield tmp_path / NAME
    folder_paths.folder_names_and_paths["checkpoints"][0].remove(str(tmp_path))


@pytest.mark.parametrize(("variant", "times"), [("from file", 1), ("svd_xt", 0)])
def test_a_variant_that_is_assumed_is_said_on_the_node(call, shown, unnamed, variant, times):
    call("StableVideoCheckpointLoader", on_page=True, checkpoint=unnamed.name, variant=variant)
    assert len(shown) == times
    assert all("14 frames is assumed" in text and "choose a variant to be sure" in text for text in shown)


def test_a_replaced_file_is_loaded_again(unnamed):
    import nodes

    node = nodes.NODE_CLASS_MAPPINGS["StableVideoCheckpointLoader"]
    before = node.fingerprint_inputs(NAME, "from file")
    assert before and node.fingerprint_inputs(NAME, "from file") == before
    os.utime(unnamed, ns=(0, 1))
    assert node.fingerprint_inputs(NAME, "from file") != before
    assert node.fingerprint_inputs("lost.safetensors", "from file") == ()
