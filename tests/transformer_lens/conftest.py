"""What tests of bridges share."""

import pytest


@pytest.fixture(autouse=True)
def without_torchvision(monkeypatch):
    """Let TransformerLens build bridges whose *processors* want torchvision."""
    package = "transformer_lens.model_bridge.architecture_adapter"
    adapters = pytest.importorskip(package, reason="needs eah-interp[lens]")

    def walk(kind):
        for child in kind.__subclasses__():
            yield child
            yield from walk(child)

    for adapter in walk(adapters.ArchitectureAdapter):
        monkeypatch.setattr(adapter, "required_libraries", [])
