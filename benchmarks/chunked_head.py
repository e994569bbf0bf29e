"""The output head and its loss: supervised rows only, in chunks, against all logits at once. They must agree first.

    python benchmarks/chunked_head.py [--width 2048] [--tokens 2048] [--supervised 0.15] [--rounds 7] [--no-save]

Both sides go from hidden states (T, E) and the head (V, E) to the summed loss and the gradients of both. The full side
is what transformers computes: logits of every row, converted to float32, labels of -100 where nothing is supervised.
With 15 % supervised rows at most 1 / 0.15 = 6.7 times is to be gained. Goal: 5 times. Peak memory is what a child
process that runs one side grows by, beyond its inputs.
"""
import argparse
import subprocess
import sys

import harness  # first: it makes qvlkit importable
import torch
from torch.nn import functional as F

from qvlkit.losses.cross_entropy import LinearCrossEntropy

VOCABULARY = 151936


def make_inputs(width: int, tokens: int, supervised: float) -> dict:
    """Hidden states, head, rows with a target and their targets."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(tokens, generator=generator)[:round(tokens * supervised)].sort().values
    return dict(hidden=torch.randn(tokens, width, generator=generator).requires_grad_(),
                head=torch.randn(VOCABULARY, width, generator=generator).mul_(0.02).requires_grad_(), rows=rows,
                targets=torch.randint(VOCABULARY, (len(rows),), generator=generator))


def make_sides(inputs: dict) -> dict:
    """The two functions; each returns (loss, gradient of the hidden states, gradient of the head)."""
    hidden, head, rows, targets = inputs['hidden'], inputs['head'], inputs['rows'], inputs['targets']
    labels = torch.full((hidden.shape[0],), -100)
    labels[rows] = targets
    chunked_loss = LinearCrossEntropy()

    def full():
        loss = F.cross_entropy(F.linear(hidden, head).float(), labels, ignore_index=-100, reduction='sum')
        return loss.detach(), *torch.autograd.grad(loss, (hidden, head))

    def chunked():
        loss = chunked_loss(hidden.index_select(0, rows), head, targets)
        return loss.detach(), *torch.autograd.grad(loss, (hidden, head))

    return dict(full=full, chunked=chunked)


def check_equal(sides: dict) -> dict:
    """Largest relative differences of loss and gradients; AssertionError above 1e-5."""
    differences = {}
    for name, a, b in zip(('loss', 'hidden_gradient', 'head_gradient'), sides['full'](), sides['chunked']()):
        differences[name] = float((a - b).norm() / a.norm())
        assert differences[name] <= 1e-5, f'{name}: relative difference {differences[name]:.1e}'
    return {name: float(f'{value:.1e}') for name, value in differences.items()}


def peak_of_child(side: str, arguments: argparse.Namespace) -> int:
    """MiB that a fresh process grows by while it runs `side` once."""
    command = [sys.executable, __file__, '--width', str(arguments.width), '--tokens', str(arguments.tokens),
               '--supervised', str(arguments.supervised), '--peak-of', side]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--width', type=int, default=2048)
    parser.add_argument('--tokens', type=int, default=2048)
    parser.add_argument('--supervised', type=float, default=0.15)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--no-save', action='store_true', help='print only')
    parser.add_argument('--peak-of', choices=('full', 'chunked'), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    inputs = make_inputs(arguments.width, arguments.tokens, arguments.supervised)
    if arguments.peak_of:
        print(harness.peak_mib(make_sides(inputs)[arguments.peak_of]))
        return
    sides = make_sides(inputs)
    differences = check_equal(sides)
    result = harness.compare(harness.interleaved(sides, rounds=arguments.rounds), 'full', 'chunked')
    del inputs, sides
    memory = {f'{side}_peak_mib': peak_of_child(side, arguments) for side in ('full', 'chunked')}
    row = dict(setting=f'T {arguments.tokens}, E {arguments.width}, V {VOCABULARY}, float32, '
                       f'{arguments.supervised:.0%} supervised', differences=differences, **result, **memory)
    print(f'full {result["full_ms"]:.0f} ms, chunked {result["chunked_ms"]:.0f} ms, {result["ratio"]:.2f} times '
          f'as fast (quartiles {result["ratio_quartiles"]})\n'
          f'peak {memory["full_peak_mib"]} and {memory["chunked_peak_mib"]} MiB; relative differences {differences}')
    if not arguments.no_save:
        print(f'written: {harness.save("chunked_head", row)}')


if __name__ == '__main__':
    main()
