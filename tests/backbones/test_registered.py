import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "lines",
    [
        "import timm, deepcluster.backbones",
        "import deepcluster.backbones, timm",
        "from deepcluster import DeepCluster; import timm, deepcluster.backbones",
        "from deepcluster.backbones.registered import timm",
    ],
)
def test_timm_knows_the_nets_whoever_loads_it(lines: str) -> None:
    code = f"{lines}; assert timm.is_model('convnet_small') and timm.is_model('resnet18_small')"
    subprocess.run([sys.executable, "-c", code], check=True)
