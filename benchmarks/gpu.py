r"""One fit on one GPU: what it reaches in so many minutes, and how much of the GPU it uses.

    python benchmarks/gpu.py --data FOLDER --set cifar10 --minutes 5
    python benchmarks/gpu.py --set digits --minutes 0.5 --device cpu     # to try it without a GPU
    python benchmarks/gpu.py --data FOLDER --set cifar10 --minutes 5 --start frozen \
        --backbone vit_small_patch14_dinov2.lvd142m    # and adapt; the weights must be there
    python benchmarks/tables.py

One call measures one row (a data set and its minutes) in well under ten minutes if the minutes are
at most 8, and writes what benchmarks/fit.py writes for a run, and: images a second (of the training
steps alone), floating-point operations an image (torch counts those of the matrix products and
convolutions of one whole step: forward, backward, optimizer), and the share of the machine's peak
that this is. The peak is measured, too: a large matrix product in the arithmetic of the fit. So is
how long the messages of a step of two processes take through NCCL where one is alone: what it costs
to start them, not to send them.
FOLDER holds SET-train.parquet (Hugging Face layout).
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import record
import torch
import torch.distributed as dist
from fit import file_name, measure
from processes import messages
from torch.utils.flop_counter import FlopCounterMode

from deepcluster.backbones.start import build_net, find_weights
from deepcluster.config import Config
from deepcluster.fitting import fit_source
from deepcluster.methods import load_method
from deepcluster.run import RunDir
from deepcluster.training.optimizers import build_optimizer
from deepcluster.training.views import Views, small_views


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second of a large square matrix product, the best of some repeats."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def product() -> float:
        start = time.perf_counter()
        for _ in range(10):
            c = a @ b
        float(c[0, 0])  # waits for the device
        return (time.perf_counter() - start) / 10

    product()
    return 2 * side**3 / min(product() for _ in range(5))


def flop_an_image(config: Config) -> float:
    """FLOP of one training step over its images, as torch counts them."""
    device, dtype = torch.device(config.device), getattr(torch, config.train.precision)
    channels = 1 if config.data.channels == "grey" else 3
    assert isinstance(config.size, int) and isinstance(config.train.batch_size, int)
    batch = config.train.batch_size
    backbone = build_net(config, channels)
    if config.start == "frozen":
        weights = find_weights(config.backbone, config.weights)
        assert weights is not None
        one = torch.zeros(1, weights.channels, config.size, config.size, device=device)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            backbone.to(device)(one)
        return float(counter.get_total_flops())
    method = load_method(config.method)(config, backbone, batch)
    method.to(device, memory_format=torch.channels_last).train()
    optimizer = build_optimizer(method.groups(), config.train)
    generator = torch.Generator(device).manual_seed(0)
    images = torch.randint(
        256, (batch, channels, config.size, config.size), dtype=torch.uint8, device=device
    )
    views = [Views(config.views, config.size)] * method.views
    if method.small_views:
        wanted = method.small_views
        small = small_views(config.views, config.size, wanted.side, wanted.scale)
        views += [small] * wanted.count
    with FlopCounterMode(display=False) as counter:
        made = [view(images, generator) for view in views]
        if config.start == "adapt":  # grey images fill a net's three channels
            made = [view.expand(-1, 3, -1, -1) for view in made]
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = method.loss(made, torch.arange(batch, device=device))
        loss.backward()
        optimizer.step()
    return counter.get_total_flops() / batch


def nccl_seconds(config: Config) -> float | None:
    """Seconds of a step's messages through NCCL with one process; None without a GPU."""
    device = torch.device(config.device)
    if device.type != "cuda" or not dist.is_nccl_available():
        return None
    on_cpu = dataclasses.replace(config, device="cpu")
    sent = [torch.zeros(size // 4 + 1, device=device) for size in messages(on_cpu, 2)]
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        took = []
        for _ in range(21):
            start = time.perf_counter()
            for tensor in sent:
                dist.all_reduce(tensor)
            torch.cuda.synchronize(device)
            took.append(time.perf_counter() - start)
    finally:
        dist.destroy_process_group()
    return statistics.median(took[1:])


def images_a_second(run: RunDir, images: int) -> float:
    """Images that the training steps went through, or a frozen net saw, over their seconds."""
    lines = run.read_metrics()
    if not lines:
        return images / float(run.read_info()["timings"]["features"])
    return len(lines) * images / sum(line["seconds"]["train"] for line in lines)


def main() -> None:
    """Fit, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the Parquet files")
    parser.add_argument("--set", required=True, help="mnist, cifar10 …, or digits")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--clusters", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of the JSON")
    parser.add_argument("--start", default="scratch", help="scratch, frozen or adapt")
    parser.add_argument("--backbone", default="auto", help="a net with weights, for these")
    parser.add_argument("--commit", help="where the code is no checkout; its own if not said")
    args = parser.parse_args()
    source = (
        args.set
        if args.data is None or args.set == "digits"
        else args.data / f"{args.set}-train.parquet"
    )
    config = dataclasses.replace(
        Config(),
        clusters=args.clusters,
        minutes=args.minutes,
        seed=args.seed,
        device=args.device,
        start=args.start,
        backbone=args.backbone,
    )
    with tempfile.TemporaryDirectory() as folder:
        run = fit_source(str(source), config, out=folder, command=[record.command()])
        resolved = run.read_config()
        best = peak(torch.device(resolved.device), getattr(torch, resolved.train.precision))
        flop = flop_an_image(resolved)
        line = measure(run, args.commit or record.commit()) | {"command": record.command()}
        speed = images_a_second(run, line["images"])
        several = nccl_seconds(resolved) if args.start == "scratch" else None
    line |= {
        "precision": resolved.train.precision,
        "images_per_second": round(speed, 1),
        "flop_per_image": round(flop),
        "peak_flop_per_second": round(best),
        "share_of_peak": round(speed * flop / best, 4),
        "nccl_seconds_per_step": several and round(several, 6),
    }
    kind = "gpu" if args.start == "scratch" else f"{args.start}-gpu"
    target = args.out / file_name(kind, line)
    record.write(target, line)
    print(
        f"{target.name}  NMI {line['fit']['nmi']:.3f}  {speed:,.0f} images/s  "
        f"{flop / 1e9:.3f} GFLOP an image  {best / 1e12:.1f} TFLOP/s at best  "
        f"share {line['share_of_peak']:.1%}"
    )


if __name__ == "__main__":
    main()
