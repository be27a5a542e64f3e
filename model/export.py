"""Owns the `export` command: an artifact from a checkpoint, from an older artifact, or for benchmarks.

Knows nothing of the training loop.
"""

import argparse
from pathlib import Path

import torch

from model.artifact import load_artifact, save_artifact
from model.checkpoint import load_checkpoint
from model.errors import ArtifactError, OptionError
from model.manifest import Column, Manifest, Output, layout_of
from model.network import Architecture, Network, network_with, state_layout
from model.provenance import manifest_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--reference", action="store_true", help="a network of random weights, for benchmarks"
    )
    source.add_argument("--checkpoint", type=Path, metavar="FILE", help="a checkpoint that `train` wrote")
    source.add_argument(
        "--artifact",
        type=Path,
        metavar="FILE",
        help="an older artifact: its weights with the script of this version",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write, model.pt")
    sizes = parser.add_argument_group("the network of --reference")
    sizes.add_argument("--inputs", type=int, default=8, metavar="N", help="number of inputs (default 8)")
    sizes.add_argument(
        "--hidden", type=int, default=128, metavar="N", help="hidden size, a multiple of 16 (default 128)"
    )
    sizes.add_argument(
        "--layers", type=int, default=1, metavar="N", help="number of layers of cells (default 1)"
    )
    sizes.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the weights (default 0)")


def run(options: argparse.Namespace) -> str:
    """Writes the artifact and returns a line that says where."""
    if options.checkpoint is not None:
        network, manifest = from_checkpoint(options.checkpoint)
    elif options.artifact is not None:
        network, manifest = from_artifact(options.artifact)
    else:
        network, manifest = reference(
            num_inputs=options.inputs,
            hidden_size=options.hidden,
            num_layers=options.layers,
            seed=options.seed,
        )
    save_artifact(network, manifest, options.out)
    return f"wrote {options.out}: {manifest.name} {manifest.version}, {options.out.stat().st_size:,} bytes"


def from_checkpoint(path: Path) -> tuple[Network, Manifest]:
    """Makes network and manifest from a checkpoint: its final weights, or the best so far while it trains."""
    saved = load_checkpoint(path)
    weights = saved["final_weights"] or saved["best_weights"]
    if not weights:
        raise ArtifactError(f"{path}: no epoch had a finite loss yet")
    known = {"best_epoch": saved["best_epoch"], "finished": saved["phase"] == "done"}
    network = network_with(Architecture(**saved["plan"]["architecture"]), weights)
    return network, manifest_of(saved["plan"], saved["about"], known)


def from_artifact(path: Path) -> tuple[Network, Manifest]:
    """Makes a network of an artifact's weights, and returns its manifest unchanged."""
    artifact = load_artifact(path)
    architecture = artifact.manifest.training.get("architecture")
    if architecture is None:
        raise ArtifactError(f"{path}: the manifest does not say the architecture: export from the checkpoint")
    weights = artifact.script.state_dict()  # these include constants of the old script, which are no weights
    network = Network(Architecture(**architecture))
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
    return network.eval(), artifact.manifest


def reference(*, num_inputs: int, hidden_size: int, num_layers: int, seed: int) -> tuple[Network, Manifest]:
    """Makes the benchmark network: an LSTM, a dense layer of 16 with ReLU, one output, no scaling, no time.

    Its state is h and c alone. A forecast feeds each prediction back as the first input, and zeros as the
    others. OptionError where a size cannot be used.
    """
    try:
        architecture = Architecture(
            num_inputs=num_inputs,
            num_outputs=1,
            hidden_size=hidden_size,
            num_layers=num_layers,
            head_size=16,
            head_steps=1,
            scaled=False,
            offsets=False,
        )
    except ValueError as error:
        raise OptionError(str(error)) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(architecture)
    manifest = Manifest(
        name="reference",
        version="1",
        description="Random weights of a usual size, for benchmarks; its predictions mean nothing.",
        attribution="none: random weights",
        inputs=tuple(Column(f"input_{i}", "") for i in range(num_inputs)),
        outputs=(
            Output(name="value", target="input_0", role="mean", quantile=None, unit="", horizon_steps=1),
        ),
        state=layout_of(state_layout(architecture)),
        uses_time=False,
        step_interval_seconds=0.0,
        training={"seed": seed, "torch": torch.__version__},
    )
    return network, manifest
