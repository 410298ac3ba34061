"""Every encoder keeps the contract; a newcomer is tested by being there (and having a line in tiny.py)."""

import pickle
import subprocess
import sys
import textwrap

import pytest
import torch

from mmtune import registry, testing
from mmtune.testing.encoders import media
from tests.encoders.tiny import TINY

NAMES = registry.names("encoders")


@pytest.fixture(scope="module", params=NAMES)
def encoder(request, tmp_path_factory):
    name = request.param
    assert name in TINY, f"encoder {name}: add its smallest config to tests/encoders/tiny.py"
    return testing.make("encoders", name, TINY[name](tmp_path_factory.mktemp(name) / "weights"))


@pytest.mark.parametrize("check", testing.checks("encoders"), ids=lambda check: check.__name__)
def test_contract(encoder, check):
    check(encoder)


def test_a_worker_can_carry_the_encoder(encoder):
    copy = pickle.loads(pickle.dumps(encoder))
    kind = encoder.kinds[0]
    assert torch.equal(copy.prepare(media(kind)), encoder.prepare(media(kind)))


def test_the_random_state_is_left_alone(encoder):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    type(encoder)(encoder.config)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", NAMES)
def test_an_absent_package_speaks(name):
    """With a package hidden, asking for the encoder names the package; it is never a bare ImportError."""
    code = textwrap.dedent(f"""
        import sys
        from mmtune import registry
        from mmtune.errors import ModelError
        before = set(sys.modules)
        optional = ("open_clip", "timm", "transformers", "torchaudio")
        class Hide:
            def find_spec(self, name, path=None, target=None):
                if name in optional:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Hide())
        try:
            registry.find("encoders", {name!r})
            print("needs none")
        except ModelError as error:
            assert any(o in str(error) for o in optional) and "pip install" in str(error), error
            print("spoke")
    """)
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
