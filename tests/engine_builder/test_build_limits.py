"""The limits that engines are built for where nobody names them."""

from __future__ import annotations

import pytest

from engine_builder.build import PROMPT_TOKENS, BuildOptions
from engine_builder.presets import PRESETS
from triton_models.runtime.duplex.options import OptionLimits
from triton_models.runtime.kv.retention import pages_needed

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", PRESETS)
def test_a_session_with_the_servers_defaults_fits(name: str) -> None:
    """Two packages count it, each its own way: here they agree, and a whole batch finds room in a GPU's pool."""
    config = PRESETS[name]
    need = pages_needed(OptionLimits().retention, config, PROMPT_TOKENS, 16, None)
    assert need is not None
    options = BuildOptions(target="torch-cuda").resolved(config)
    assert options.max_pages == max(256, need)
    assert options.pool_pages is not None
    assert options.pool_pages > 8 * need


def test_what_is_asked_for_is_kept() -> None:
    options = BuildOptions(target="tensorrt", max_pages=64, pool_pages=100).resolved(PRESETS["v0.1-8b"])
    assert (options.max_pages, options.pool_pages) == (64, 100)
    assert BuildOptions().resolved(PRESETS["tiny"]).pool_pages == 2048
