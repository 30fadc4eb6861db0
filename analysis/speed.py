"""What the package costs beside the arithmetic that nobody can save, beside plain Pyro, PyTorch, NumPyro and pythae.

``training``: milliseconds a step of ``fit``, compiled and plain, and of everybody else on the same
model, data and batches, each in a process of its own; they work in turns, one at a time, and a
ratio is a median over rounds of two times of the same round. The floor is the step's matrix
products alone.

``evidence``: importance-weighted evidence at K = 5000 beside plain Pyro and pythae, at both matmul
precisions.

``measuring``: evidence, annealing, refits, the decomposition of the KL and the reading of latents
as multiples of their matrix products, and how cost grows with data, samples, features and batch.

``estimators``: ``method="auto"`` over plain evidence where all weights are trusted, and evidence at K =
5000 over its matrix products, both in CPU time and in turns.

``memory``: peak memory of one call in a fresh process.

``crowded``: a compiled step beside as many busy processes as there are processors, by how OpenMP's threads wait.

``--ablation``: the time that each trick saves, alone, in alternated turns: ``ablation.csv`` and nothing else.

    python analysis/speed.py --data-root FOLDER_THAT_HOLDS_MNIST
    python analysis/speed.py --device cuda

Without a data root the images are noise, which takes as long. Peers are timed where ``pip install
pyro-bvae[bench]`` has put them beside the package. Time does not depend on the weights, so the
models of the measurements are not trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks import ablation, crowded, estimators, measuring, memory, training
from benchmarks.common import Setting, environment
from benchmarks.contenders import MODELS, train
from benchmarks.evidence import benchmark_evidence
from benchmarks.turns import serve

RESULTS = Path(__file__).parent / "results" / "speed"
BENCHMARKS: dict[str, Callable[[Setting], None]] = {
    "training": training.benchmark_training,
    "evidence": benchmark_evidence,
    "measuring": measuring.benchmark_measuring,
    "estimators": estimators.benchmark_estimators,
    "memory": memory.benchmark_memory,
    "crowded": crowded.benchmark_crowded,
}


def reading(folder: Path, goals: dict[str, float]) -> str:
    """Return what the tables say, the goals first."""
    said = [*training.verdict(folder, goals), *measuring.verdict(folder)]
    said += [*estimators.verdict(folder), *memory.verdict(folder), *crowded.verdict(folder)]
    if folder.name != "cuda" and not (folder / "cuda" / training.TABLE).exists():
        said.append("no GPU was measured")
    return "\n".join(said) + "\n"


def main() -> None:
    """Run the benchmarks that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", help="folder that holds MNIST/raw; noise without it")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--num-data", type=int, default=128, help="images of the evidence")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=200, help="training steps of a turn")
    parser.add_argument("--ablation", action="store_true", help="what each trick saves, alone")
    parser.add_argument("--only", choices=tuple(BENCHMARKS), nargs="+", default=tuple(BENCHMARKS))
    parser.add_argument(
        "--models", choices=tuple(MODELS), nargs="+", default=(), help="of the training; all"
    )
    parser.add_argument("--output", type=Path, help="folder of the results")
    parser.add_argument(
        "--worker", help=argparse.SUPPRESS
    )  # model/contender, in a process of its own
    parser.add_argument(
        "--memory-of", nargs=2, help=argparse.SUPPRESS
    )  # call and K, in a process of its own
    given = parser.parse_args()
    output = given.output or (RESULTS if given.device == "cpu" else RESULTS / given.device)
    setting = Setting(
        given.data_root,
        given.device,
        given.num_data,
        given.repeats,
        given.steps,
        output,
        tuple(given.models),
    )
    if given.worker:
        serve(given.device, lambda turn: train(given.worker, setting, turn))
        return
    if given.memory_of:
        memory.print_memory(setting, given.memory_of[0], int(given.memory_of[1]))
        return
    output.mkdir(parents=True, exist_ok=True)
    (output / "environment.txt").write_text(environment(), encoding="utf-8")
    if given.ablation:
        ablation.benchmark_ablation(setting)
        return
    for name in given.only:
        BENCHMARKS[name](setting)
    words = reading(output, training.GOALS if given.device == "cpu" else training.CUDA_GOALS)
    (output / "reading.txt").write_text(words, encoding="utf-8")
    print("\n" + words)


if __name__ == "__main__":
    main()
