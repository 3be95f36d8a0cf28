"""Which precision `auto` is."""

import pytest
import torch

from sd_aanet.precision import resolve_precision


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_precision(native: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    assert resolve_precision("auto", "auto") == resolve_precision("auto", "cpu") == expected
    assert resolve_precision("64-true", "cpu") == "64-true"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not native)
    assert resolve_precision("auto", "cpu") == expected
    assert resolve_precision("auto", "gpu") == {"bf16-mixed": "32-true", "32-true": "bf16-mixed"}[expected]
