import json
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import scipy.ndimage
import timm
import torch
from torch import nn

from deepcluster.backbones.build import auto_backbone, build_backbone, prepare_backbone
from deepcluster.backbones.nets import OWN_BACKBONES, Sobel
from deepcluster.backbones.preprocessing import Preprocessing
from deepcluster.backbones.weights import load_timm, save_timm
from deepcluster.errors import ConfigError, RunError

SIZES = {"alexnet_bn": 63, "alexnet_small": 28, "resnet18_small": 16}  # others: 28


def images(channels: int, size: int, n: int = 2) -> torch.Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0))


def export(model: nn.Module, folder: Path, name: str, channels: int, size: int, sobel=False):
    save_timm(
        model,
        folder,
        name=name,
        channels=channels,
        preprocessing=Preprocessing(size, (0.5,) * channels, (0.25,) * channels),
        sobel=sobel,
    )


# -- AlexNet-BN ---------------------------------------------------------------------------------


def alexnet(channels: int = 3, sobel: bool = False) -> nn.Module:
    with torch.device("meta"):  # shapes only: nothing is computed
        return build_backbone("alexnet-bn", channels=channels, size=224, sobel=sobel)


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def test_alexnet_has_the_papers_layers():
    net = alexnet()
    shapes = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.Linear):
            module.register_forward_hook(lambda *args: shapes.append(tuple(args[2].shape[1:])))
    net(torch.empty(1, 3, 224, 224, device="meta"))
    assert shapes == [
        *[(96, 55, 55), (96, 27, 27)],  # convolution, pooling
        *[(256, 27, 27), (256, 13, 13)],
        (384, 13, 13),
        (384, 13, 13),
        *[(256, 13, 13), (256, 6, 6)],
        (4096,),  # from 256 · 6 · 6 = 9216
        (4096,),
    ]
    kinds = [type(module).__name__ for module in net.features]
    block = ["Conv2d", "BatchNorm2d", "ReLU"]
    pooled = [*block, "MaxPool2d"]
    assert kinds == [*pooled, *pooled, *block, *block, *pooled]
    kinds = [type(module).__name__ for module in net.classifier]
    assert kinds == ["Dropout", "Linear", "ReLU", "Dropout", "Linear"]  # no ReLU at the end
    assert [m.p for m in net.classifier if isinstance(m, nn.Dropout)] == [0.5, 0.5]
    assert isinstance(net.feature_activation, nn.ReLU)
    assert net.num_features == 4096


@pytest.mark.parametrize(
    ("channels", "sobel", "inputs"), [(3, False, 3), (1, False, 1), (3, True, 2)]
)
def test_alexnet_has_the_papers_number_of_parameters(channels, sobel, inputs):
    by_hand = (
        (11 * 11 * inputs * 96 + 96) + 2 * 96  # weights and biases, then batch norm
        + (5 * 5 * 96 * 256 + 256) + 2 * 256
        + (3 * 3 * 256 * 384 + 384) + 2 * 384
        + (3 * 3 * 384 * 384 + 384) + 2 * 384
        + (3 * 3 * 384 * 256 + 256) + 2 * 256
        + (9216 * 4096 + 4096)
        + (4096 * 4096 + 4096)
    )  # fmt: skip
    assert parameters(alexnet(channels, sobel)) == by_hand
    assert inputs != 3 or by_hand == 58_284_096


@pytest.fixture(scope="module")
def small_input_alexnet() -> nn.Module:
    torch.manual_seed(0)
    return build_backbone("alexnet_bn", channels=3, size=63)


def test_alexnet_starts_as_in_the_paper(small_input_alexnet):
    for module in small_input_alexnet.modules():
        if isinstance(module, nn.Conv2d):
            std = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
        elif isinstance(module, nn.Linear):
            std = 0.01
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
            continue
        else:
            continue
        assert (module.bias == 0).all()
        assert module.weight.std().item() == pytest.approx(std, rel=0.02)
        assert abs(module.weight.mean().item()) < 0.02 * std


def test_alexnet_refuses_small_images():
    with pytest.raises(ConfigError, match=r"63 at the least, not 32.*alexnet-small"):
        build_backbone("alexnet-bn", channels=3, size=32)


# -- Sobel --------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_sobel_is_scipys(channels):
    batch = images(channels, 9)
    found = Sobel()(batch).numpy()
    for image, (x, y) in zip(batch.numpy().astype(np.float64), found, strict=True):
        grey = image.mean(0)
        # scipy's filter is the right side minus the left one, below minus above
        np.testing.assert_allclose(x, -scipy.ndimage.sobel(grey, 1, mode="constant"), atol=1e-5)
        np.testing.assert_allclose(y, -scipy.ndimage.sobel(grey, 0, mode="constant"), atol=1e-5)


def test_sobel_of_a_single_pixel():
    image = torch.zeros(1, 1, 3, 3)
    image[0, 0, 0, 0] = 1.0  # at the centre of the result the kernels' upper left corner meets it
    assert Sobel()(image)[0, :, 1, 1].tolist() == [1.0, 1.0]
    image = torch.zeros(1, 1, 3, 3)
    image[0, 0, 1, 2] = 1.0  # to the right: [2, 0, -2] across, nothing down
    assert Sobel()(image)[0, :, 1, 1].tolist() == [-2.0, 0.0]


def test_sobel_has_nothing_to_train_or_save():
    assert not list(Sobel().parameters())
    assert not Sobel().state_dict()


# -- every net of ours --------------------------------------------------------------------------


@pytest.mark.parametrize("name", OWN_BACKBONES)
@pytest.mark.parametrize(("channels", "sobel"), [(1, False), (3, True)])
def test_exported_net_gives_the_same_features_in_timm(name, channels, sobel, tmp_path):
    size = SIZES.get(name, 28)
    net = build_backbone(name.replace("_", "-"), channels=channels, size=size, sobel=sobel)
    net(images(channels, size, 4))  # moves the running statistics off 0 and 1
    net.eval()
    expected = net(images(channels, size))
    assert expected.shape == (2, net.num_features)
    export(net, tmp_path, name, channels, size, sobel)
    for loaded in (
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval(),
        load_timm(tmp_path),
    ):
        assert torch.equal(loaded(images(channels, size)), expected)
        assert loaded.num_features == net.num_features
        data = timm.data.resolve_data_config(model=loaded)
        assert tuple(data["input_size"]) == (channels, size, size)
        assert list(data["mean"]) == [0.5] * channels
        assert list(data["std"]) == [0.25] * channels
    assert type(loaded.feature_activation) is type(net.feature_activation)  # the last: load_timm


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224.augreg_in21k"])
def test_exported_timm_net_gives_the_same_features(name, tmp_path):
    net = build_backbone(name, channels=1, size=32).eval()
    export(net, tmp_path, name, 1, 32)
    expected = net(images(1, 32))
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=0).eval()
    assert torch.equal(loaded(images(1, 32)), expected)
    assert torch.equal(load_timm(tmp_path)(images(1, 32)), expected)
    assert isinstance(net.feature_activation, nn.Identity)


@pytest.mark.parametrize("name", ["alexnet_small", "convnet_tiny", "resnet18_small"])
def test_timm_puts_a_classifier_on_an_exported_net(name, tmp_path):
    size = SIZES.get(name, 28)
    net = build_backbone(name, channels=1, size=size).eval()
    export(net, tmp_path, name, 1, size)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=7).eval()
    assert model(images(1, size)).shape == (2, 7)
    features = net.feature_activation(net(images(1, size)))
    torch.testing.assert_close(model.get_classifier()(features), model(images(1, size)))
    model.reset_classifier(0)
    assert torch.equal(model(images(1, size)), net(images(1, size)))


@pytest.mark.parametrize("name", ["convnet_small", "convnet_tiny"])
@pytest.mark.parametrize("size", [8, 28, 33, 96])
def test_convnet_takes_any_size_from_8(name, size):
    assert build_backbone(name, channels=3, size=size)(images(3, size)).shape[0] == 2


@pytest.mark.parametrize("size", [8, 16, 28, 33, 64])
def test_alexnet_small_takes_8_to_64(size):
    net = build_backbone("alexnet_small", channels=1, size=size)
    assert net(images(1, size)).shape == (2, 1024)


def test_resnet18_small_keeps_the_pixels():
    with torch.device("meta"):
        net = build_backbone("resnet18-small", channels=3, size=32)
        assert net.forward_features(torch.empty(1, 3, 32, 32)).shape == (1, 512, 4, 4)
        plain = timm.create_model("resnet18", num_classes=0)
    # the stem has 3 × 3 weights instead of 7 × 7, all else is timm's ResNet-18
    assert parameters(plain) - parameters(net) == 64 * 3 * (7 * 7 - 3 * 3)


def test_convnet_small_takes_24_million_multiply_adds():
    from torch.utils.flop_counter import FlopCounterMode

    net = build_backbone("convnet-small", channels=3, size=32)
    with FlopCounterMode(display=False) as counter:
        net(images(3, 32, 1))
    # channels in · channels out · pixels of the result
    by_hand = 16 * 3 * 32 * 16**2 + 9 * (
        32 * 64 * 16**2
        + (2 * 64 * 64 * 8**2 + 64 * 128 * 8**2)
        + (2 * 128 * 128 * 4**2 + 128 * 256 * 4**2)
    )
    assert counter.get_total_flops() == 2 * by_hand
    assert by_hand == 23_986_176


@pytest.mark.parametrize("name", ["convnet_tiny", "alexnet_small", "resnet18_small"])
def test_channels_last_changes_nothing(name):
    net = build_backbone(name, channels=3, size=16, sobel=True).eval()
    expected = net(images(3, 16))
    net.to(memory_format=torch.channels_last)
    found = net(images(3, 16).to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_channels_last_weights_are_saved_alike(tmp_path):
    net = build_backbone("convnet_tiny", channels=1, size=8)
    export(net, tmp_path / "a", "convnet_tiny", 1, 8)
    export(net.to(memory_format=torch.channels_last), tmp_path / "b", "convnet_tiny", 1, 8)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_same_seed_same_weights():
    def features() -> torch.Tensor:
        torch.manual_seed(3)
        return build_backbone("convnet_tiny", channels=1, size=8).eval()(images(1, 8))

    assert torch.equal(features(), features())


# -- a module of the user's own -----------------------------------------------------------------


def own_module() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_own_module_is_measured():
    net = prepare_backbone(own_module(), channels=3, size=12)
    assert net.num_features == 5
    assert isinstance(net.feature_activation, nn.Identity)
    assert net.training


def test_own_module_is_saved_as_weights_only(tmp_path):
    net = prepare_backbone(own_module(), channels=3, size=12)
    export(net, tmp_path, "custom", 3, 12)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["architecture"], config["num_features"]) == ("custom", 5)
    again = own_module()
    again.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    assert torch.equal(again(images(3, 12)), net(images(3, 12)))
    with pytest.raises(RunError, match="module of your own"):
        load_timm(tmp_path)


def test_own_module_must_give_rows():
    with pytest.raises(ConfigError, match=r"shape \(n, d\).*\(2, 5, 10, 10\)"):
        prepare_backbone(nn.Conv2d(3, 5, 3), channels=3, size=12)
    with pytest.raises(ConfigError, match="cannot take 1-channel images of 12 × 12"):
        prepare_backbone(own_module(), channels=1, size=12)


# -- what goes wrong ----------------------------------------------------------------------------


def test_unknown_name_says_what_is_near():
    with pytest.raises(ConfigError, match="did you mean resnet50"):
        build_backbone("resnet-50", channels=3, size=32)
    with pytest.raises(ConfigError, match="did you mean convnet_small"):
        build_backbone("convnet-smal", channels=3, size=32)
    with pytest.raises(ConfigError, match=r"no backbone 'x': choose one of alexnet-bn, .*timm"):
        build_backbone("x", channels=3, size=32)


def test_size_below_the_least_says_so():
    with pytest.raises(ConfigError, match="convnet-small cannot take 3-channel images of 2 × 2"):
        build_backbone("convnet-small", channels=3, size=2)


def test_sobel_is_for_own_nets():
    with pytest.raises(ConfigError, match="alexnet-bn"):
        build_backbone("resnet18", channels=3, size=32, sobel=True)


def test_load_needs_a_model(tmp_path):
    with pytest.raises(RunError, match=r"config\.json is missing"):
        load_timm(tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "resnet0"}')
    with pytest.raises(RunError, match=r"model\.safetensors is missing"):
        load_timm(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(RunError, match="resnet0"):
        load_timm(tmp_path)


def test_auto_backbone_names_exist():
    for device in ("cpu", "cuda", "mps"):
        for size in (8, 28, 32, 64, 96, 128, 224):
            for channels in (1, 3):
                for n in (100, 1_000_000):
                    assert timm.is_model(auto_backbone(size, channels, n, device))
    assert auto_backbone(28, 1, 60_000, "cpu") == "convnet_tiny"
    assert auto_backbone(32, 3, 50_000, "cpu") == "convnet_small"
    assert auto_backbone(32, 3, 50_000, "cuda") == "resnet18_small"
    assert auto_backbone(224, 3, 1_281_167, "cuda") == "resnet50"
