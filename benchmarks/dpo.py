"""A DPO step: a pair as one row with the prompt once, against transformers' modules in a concatenated, padded loop.

    python benchmarks/dpo.py [--width 256] [--depth 4] [--pairs 4] [--rounds 5] [--threads 2] [--no-save]

Each pair has a prompt of about 1,200 tokens with a picture, and answers of about 150. The other side does what TRL's
trainer does with a vision model: chosen and rejected conversations as 2B padded sequences, the pixels twice, a forward
of the policy and a forward of the reference copy, log-probabilities of the answers' rows alone; it gets them from the
hidden states of those rows, so that the head costs both sides the same. Both sides have the same weights, a frozen
vision encoder, sdpa, the same loss and a fused AdamW over merger and language model; ours also with stored reference
log-probabilities. The reference is a copy of the weights, the policy is moved a little away from it before the first
comparison.

Equal first: policy and reference log-probability of every answer, and the loss. Goals: 1.8 times as many pairs a second
with a live reference, 2.4 times with a stored one. Peak memory is what a child process grows by in one step beyond its
models and inputs.
"""
import argparse
import copy
import subprocess
import sys

import harness  # first: it makes qvlkit importable
import numpy as np
import torch

from qvlkit.convert.key_mapping import our_name
from qvlkit.data.preference import PreferenceProcessor, collate_pairs
from qvlkit.data.processor import Processor
from qvlkit.data.tokenizers import StandInTokenizer
from qvlkit.engine.optimizers import AdamW
from qvlkit.losses.log_probabilities import linear_log_probabilities
from qvlkit.losses.preference import DPOLoss
from qvlkit.models.builder import build_model
from qvlkit.structures import Media, Sample, Turn
from qvlkit.train.reference import LiveReference

VOCABULARY, SIDES = 2048, ('transformers', 'live', 'stored')


def model_config(width: int, depth: int) -> dict:
    """Shares of vision and language about those of the released 3B model at small width."""
    heads = width // 64
    return dict(
        vision_encoder=dict(type='Qwen25ViT', width=width // 2, depth=depth, num_heads=max(1, heads // 2),
                            feed_forward_width=width * 4 // 3, patch_size=14, temporal_patch_size=2, window_size=112,
                            full_attention_blocks=[depth - 1]),
        merger=dict(type='PatchMerger', merge_size=2),
        position_encoding=dict(type='AbsoluteTimeMRoPE', sections=[8, 12, 12], tokens_per_second=2, theta=1e6),
        language_model=dict(type='Qwen2Decoder', width=width, depth=depth, num_heads=heads,
                            num_kv_heads=max(1, heads // 2), feed_forward_width=width * 4, vocab_size=VOCABULARY,
                            tie_embeddings=True))


def transformers_model(config: dict, ours: torch.nn.Module, tokenizer: StandInTokenizer) -> torch.nn.Module:
    """transformers' model with our weights; its vision encoder is frozen."""
    import transformers
    vision, language, positions = config['vision_encoder'], config['language_model'], config['position_encoding']
    theirs = transformers.Qwen2_5_VLForConditionalGeneration._from_config(transformers.Qwen2_5_VLConfig(
        vision_config=dict(
            hidden_size=vision['width'], depth=vision['depth'], num_heads=vision['num_heads'],
            intermediate_size=vision['feed_forward_width'], patch_size=vision['patch_size'],
            temporal_patch_size=vision['temporal_patch_size'], window_size=vision['window_size'],
            fullatt_block_indexes=vision['full_attention_blocks'], spatial_merge_size=config['merger']['merge_size'],
            out_hidden_size=language['width'], tokens_per_second=positions['tokens_per_second']),
        text_config=dict(
            hidden_size=language['width'], num_hidden_layers=language['depth'],
            num_attention_heads=language['num_heads'], num_key_value_heads=language['num_kv_heads'],
            intermediate_size=language['feed_forward_width'], vocab_size=VOCABULARY, rms_norm_eps=1e-6,
            pad_token_id=None, bos_token_id=None, eos_token_id=None,
            rope_parameters=dict(rope_type='default', rope_theta=positions['theta'],
                                 mrope_section=positions['sections'])),
        tie_word_embeddings=True, image_token_id=tokenizer.special_id('<|image_pad|>'),
        video_token_id=tokenizer.special_id('<|video_pad|>'),
        vision_start_token_id=tokenizer.special_id('<|vision_start|>'),
        vision_end_token_id=tokenizer.special_id('<|vision_end|>')), attn_implementation='sdpa', dtype=torch.float32)
    weights = dict(ours.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(weights[our_name(name)].reshape(parameter.shape))
            parameter.requires_grad_(weights[our_name(name)].requires_grad)
    return theirs


def make_pairs(count: int, seed: int = 0) -> list[Sample]:
    """Pairs with a picture of 28 x 30 merge cells (840 tokens), 340 tokens of question, answers of 100 to 200."""
    random = np.random.default_rng(seed)

    def text(length: int) -> str:
        return ''.join(random.choice(list('abcdefgh ijklmnop'), length))

    pairs = []
    for index in range(count):
        pixels = random.integers(0, 256, (28 * 28, 30 * 28, 3), dtype=np.uint8)
        chosen, rejected = (text(length) for length in random.integers(100, 201, 2))
        pairs.append(Sample(f'pair {index}', [Turn('user', [Media('image', pixels), text(340)]),
                                              Turn('assistant', [chosen])], rejected=[Turn('assistant', [rejected])]))
    return pairs


class Setup:
    """Both models, their references, and the pairs in the form that each side takes."""

    def __init__(self, arguments: argparse.Namespace, sides: tuple[str, ...] = SIDES):
        config, tokenizer = model_config(arguments.width, arguments.depth), StandInTokenizer(VOCABULARY)
        self.ours = build_model(config, seed=0)
        self.ours.vision_encoder.requires_grad_(False)
        processor = Processor(tokenizer, self.ours.geometry, num_tokens=self.ours.merger.num_tokens,
                              position_ids=self.ours.position_encoding.ids, plan=self.ours.vision_encoder.plan)
        self.pairs = [PreferenceProcessor(processor).encode(pair) for pair in make_pairs(arguments.pairs)]
        # The loader puts a few pairs into a row: here all of them.
        self.batch = collate_pairs(self.pairs, plan=processor.plan, geometry=self.ours.geometry)
        self.loss, self.reference = DPOLoss(), LiveReference(self.ours)
        if 'transformers' in sides:
            self.theirs = transformers_model(config, self.ours, tokenizer)
            self.their_reference = copy.deepcopy(self.theirs).requires_grad_(False)
            self.inputs, self.rows, self.targets = self._padded()
        self._move_away(self.ours, lambda name: name)
        if 'transformers' in sides:
            self._move_away(self.theirs, our_name)
        self.optimizers = {side: AdamW([parameter for parameter in model.parameters() if parameter.requires_grad],
                                       lr=1e-6) for side, model in (
            ('transformers', getattr(self, 'theirs', self.ours)), ('live', self.ours), ('stored', self.ours))}
        with torch.no_grad():
            self.stored = self._our_sums(self.reference.model, self.ours.encode(self.batch))
        if sides == ('stored',):
            self.reference = None

    def _move_away(self, model: torch.nn.Module, name_of) -> None:
        """The same small change of what trains, whatever its names."""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    generator = torch.Generator().manual_seed(sum(map(ord, name_of(name))))
                    parameter.add_(0.002 * torch.randn(parameter.numel(), generator=generator).view_as(parameter))

    def _padded(self) -> tuple[dict, torch.Tensor, torch.Tensor]:
        """2B conversations, chosen ones first, padded on the right; rows of each answer's predictions, and targets."""
        sequences = [(*pair.token_ids.split(pair.lengths), pair) for pair in self.pairs]
        conversations = [torch.cat([parts[0], parts[1 + side]]) for side in (0, 1) for parts in sequences]
        ids = torch.nn.utils.rnn.pad_sequence(conversations, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids in conversations], batch_first=True)
        starts = [pair.lengths[0] for pair in self.pairs] * 2
        spans = [torch.arange(start, len(conversation)) for start, conversation in zip(starts, conversations)]
        rows = torch.cat([index * ids.shape[1] + span - 1 for index, span in enumerate(spans)])
        targets = torch.cat([conversation[span] for conversation, span in zip(conversations, spans)])
        self.answers = torch.arange(len(conversations)).repeat_interleave(torch.tensor([len(span) for span in spans]))
        patches = torch.from_numpy(np.concatenate([patches for pair in self.pairs for patches in pair.patches]))
        pixels, grids = self.ours.normalise(patches, 1), torch.tensor([grid for pair in self.pairs
                                                                      for grid in pair.grids])
        image = self.theirs.config.image_token_id
        return (dict(input_ids=ids, attention_mask=mask, pixel_values=torch.cat([pixels, pixels]),
                     image_grid_thw=torch.cat([grids, grids]), mm_token_type_ids=(ids == image).long(),
                     use_cache=False), rows, targets)

    def _our_sums(self, model: torch.nn.Module, features: torch.Tensor) -> torch.Tensor:
        batch = self.batch
        hidden = model(batch, features=features).index_select(0, batch.target_rows)
        each = linear_log_probabilities(hidden, model.language_model.head_weight, batch.target_ids)
        return each.new_zeros(2 * batch.num_pairs).index_add(0, batch.answer_of_target, each).view(-1, 2)

    def _their_sums(self, model: torch.nn.Module) -> torch.Tensor:
        hidden = model.model(**self.inputs).last_hidden_state.flatten(0, 1).index_select(0, self.rows)
        each = model.lm_head(hidden).log_softmax(-1).gather(1, self.targets[:, None]).squeeze(1)
        return each.new_zeros(2 * len(self.pairs)).index_add(0, self.answers, each).view(2, -1).T

    def sums(self, side: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(pairs, 2) of policy and reference."""
        if side == 'transformers':
            with torch.no_grad():
                reference = self._their_sums(self.their_reference)
            return self._their_sums(self.theirs), reference
        with torch.no_grad():
            features = self.ours.encode(self.batch)
            reference = self.stored if side == 'stored' else self._our_sums(self.reference.model, features)
        return self._our_sums(self.ours, features), reference

    def step(self, side: str) -> None:
        """Forward, loss, backward, optimizer."""
        policy, reference = self.sums(side)
        self.loss(policy, reference, self.batch.answer_lengths).mean().backward()
        self.optimizers[side].step()
        self.optimizers[side].zero_grad()


def check_equal(setup: Setup) -> dict:
    """Largest relative differences of the sums, and the absolute one of the loss; AssertionError above 1e-5."""
    with torch.no_grad():
        results = {side: setup.sums(side) for side in SIDES}
    losses = {side: setup.loss(*sums, setup.batch.answer_lengths).mean() for side, sums in results.items()}
    differences = {}
    for side in SIDES[1:]:
        for name, a, b in zip(('policy', 'reference'), results['transformers'], results[side]):
            differences[f'{side} {name}'] = float(((a - b).abs() / a.abs()).max())
        differences[f'{side} loss'] = float((losses['transformers'] - losses[side]).abs())
        margin = (results[side][0] - results[side][1]).abs().min()
        assert margin > 1e-3, 'policy and reference do not differ: nothing is compared'
    for name, difference in differences.items():
        assert difference <= (1e-4 if 'loss' in name else 1e-5), f'{name}: {difference:.1e}'
    return {name: float(f'{value:.1e}') for name, value in differences.items()}


def compare_sides(arguments: argparse.Namespace) -> dict:
    """Setting, differences, and how many times as fast each of our sides is."""
    setup = Setup(arguments)
    differences = check_equal(setup)
    print(f'equal: {differences}')
    prompt, chosen, rejected = np.mean([pair.lengths for pair in setup.pairs], axis=0)
    seconds = harness.interleaved({side: lambda side=side: setup.step(side) for side in SIDES},
                                  rounds=arguments.rounds)
    return dict(setting=f'width {arguments.width}, depth {arguments.depth}, {arguments.pairs} pairs, prompt '
                        f'{prompt:.0f}, answers {chosen:.0f} and {rejected:.0f} tokens, float32',
                differences=differences, **{side: harness.compare(seconds, 'transformers', side) for side in SIDES[1:]})


def peak_of_child(side: str, arguments: argparse.Namespace) -> int:
    """MiB that a fresh process grows by while it makes one step of `side`."""
    command = [sys.executable, __file__, *(f'--{name}={getattr(arguments, name)}' for name in
                                           ('width', 'depth', 'pairs', 'threads')), '--peak-of', side]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--width', type=int, default=256)
    parser.add_argument('--depth', type=int, default=4)
    parser.add_argument('--pairs', type=int, default=4)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--no-save', action='store_true', help='print only')
    parser.add_argument('--peak-of', choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak_of:
        setup = Setup(arguments, (arguments.peak_of,))
        print(harness.peak_mib(lambda: setup.step(arguments.peak_of)))
        return
    row = compare_sides(arguments)
    memory = {f'{side}_peak_mib': peak_of_child(side, arguments) for side in SIDES}
    row |= memory
    for side, goal in (('live', 1.8), ('stored', 2.4)):
        result = row[side]
        print(f'{side} reference: {arguments.pairs / result[f"{side}_ms"] * 1000:.2f} pairs/s against '
              f'{arguments.pairs / result["transformers_ms"] * 1000:.2f}, {result["ratio"]:.2f} times (quartiles '
              f'{result["ratio_quartiles"]}); goal {goal}: {"met" if result["ratio"] >= goal else "MISSED"}; peak '
              f'{memory[f"{side}_peak_mib"]} against {memory["transformers_peak_mib"]} MiB')
    if not arguments.no_save:
        print(f'written: {harness.save("dpo", row)}')


if __name__ == '__main__':
    main()
