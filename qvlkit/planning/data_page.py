"""The page of a stage's data: what was planned, how rows are filled, and some samples as the model gets them."""
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from qvlkit.planning.close_up import SHOWN, CloseUp
from qvlkit.planning.composition import Composition
from qvlkit.planning.flops import format_flops
from qvlkit.planning.survey import Survey
from qvlkit.report.page import LEGEND, Page, series_colour
from qvlkit.structures import Media, SampleError

ROWS_SHOWN = 40  # of the pack map
REASONS_SHOWN = 20
COMPOSITION_SHOWN = ('kind', 'subset', 'language')  # as bars
MEDIA_SHOWN = 4  # images of a sample, and videos
_OTHERS = {'context': 'context', 'control token': 'control', 'visual token': 'visual'}
ROLES = dict(conversation={'target (learned)': 'target', **_OTHERS},
             caption={'caption': 'target', 'control token': 'control'},
             preference={'chosen answer': 'chosen', 'rejected answer': 'rejected', **_OTHERS})


def source_table(survey: Survey, bad: Sequence[SampleError] = ()) -> tuple[list[str], list[list]]:
    """Header and rows of what each source gives, and of all together."""
    header = ['source', 'asked', 'by sample', 'by token', 'samples', 'mean tokens', 'visual', 'targets', 'too long',
              'bad']
    failed = Counter(error.source for error in bad)
    everything = survey.items
    count, tokens = len(everything), sum(item.placed.length for item in everything)
    rows = []
    for name, asked, items in [*((name, survey.asked[name], survey.of_source(name)) for name in survey.sources),
                               ('all', 1.0, everything)]:
        length = sum(item.placed.length for item in items)
        whole = name == 'all' and items is everything
        rows.append([name, _percent(asked), _percent(len(items) / count), _percent(length / tokens),
                     f'{len(items):,}', f'{length / max(1, len(items)):,.1f}',
                     _percent(sum(item.visual for item in items) / max(1, length)),
                     _percent(sum(item.targets for item in items) / max(1, length)),
                     survey.left_out.total() if whole else survey.left_out[name],
                     len(bad) if whole else failed[name]])
    return header, rows


def row_facts(survey: Survey) -> list[tuple[str, str]]:
    """What the rows are like, as (name, value)."""
    tokens, costs = survey.row_tokens(), survey.step_costs()
    every, per_step = np.concatenate(costs), [len(step) for step in costs]
    shared = [step for step in costs if len(step) > 1]
    low, high = min(per_step), max(per_step)
    facts = [('steps planned', f'{len(survey.steps):,}' + (' (the data ended)' if survey.ended else '')),
             ('rows in a step', f'{low}' if low == high else f'{low} to {high}'),
             ('tokens of a row, at most', f'{survey.row_length:,}'),
             ('samples in a row, on average', f'{len(survey.items) / len(tokens):.1f}'),
             ('rows filled', f'{_percent(tokens.sum() / (survey.row_length * len(tokens)))} on average, '
                             f'{_percent(tokens.min() / survey.row_length)} the emptiest'),
             ('operations of a row', f'{format_flops(every.mean())} on average'),
             ('cost of rows, all steps', f'spread {_percent(every.std() / every.mean())} of the mean, '
                                         f'costliest / mean {every.max() / every.mean():.3f}')]
    if shared:
        spread = np.mean([step.std() / step.mean() for step in shared])
        worst = np.mean([step.max() / step.mean() for step in shared])
        facts.append(('cost of rows within a step', f'spread {_percent(spread)} of the mean, costliest / mean '
                                                    f'{worst:.3f}, averaged over steps'))
    else:
        facts.append(('cost of rows within a step', 'one row in a step: nothing waits for another'))
    return facts


def data_page(title: str, survey: Survey, close_ups: Sequence[CloseUp], bad: Sequence[SampleError], tokenizer: Any, *,
              notes: Sequence[str] = (), composition: Composition | None = None) -> Page:
    """The whole page.

    Args:
        title: Of the page.
        survey: Planned steps.
        close_ups: Samples to show.
        bad: Samples that could not be used, in planning or when they were encoded.
        tokenizer: To show tokens as text.
        notes: Remarks under the title.
        composition: Of the samples in the planned rows.
    """
    page = Page(title)
    for note in notes:
        page.text(note, soft=True)
    page.heading('Sources')
    page.table(*source_table(survey, bad), bold=0)
    page.text('asked: share of the draws by the weights of the config, at the start. by sample, by token: shares of '
              'what was planned into rows. visual, targets: shares of the tokens. too long: left out because '
              'its source says so (oversize).', soft=True)
    if composition is not None:
        _composition(page, composition)
    page.heading('Rows')
    page.table(('', 'value'), row_facts(survey), bold=0)
    _bad_samples(page, bad)
    _histograms(page, survey)
    _pack_map(page, survey)
    page.heading('Samples as the model gets them')
    page.text('Pictures are put together again from the patches that the model is given, after every crop, flip and '
              'resize; boxes, points and outlines are drawn where they lie on them. Large ones are stored smaller or '
              'as JPEG for this page.', soft=True)
    if not close_ups:
        page.text('None was asked for, or none could be encoded.')
    for number, shown in enumerate(close_ups, start=1):
        _close_up(page, number, shown, tokenizer)
    return page


def _composition(page: Page, composition: Composition) -> None:
    page.heading('Composition')
    page.table(*composition.table(), bold=1)
    page.bars('Shares', {f'{name}: {value}': {'by sample': by_sample, 'by token': by_token}
                         for name in COMPOSITION_SHOWN
                         for value, (by_sample, by_token) in composition.shares(name).items()})
    page.text(f'Of {composition.samples:,} samples of the planned rows. A language is told by its script: Han letters, '
              "or Latin ones without accents, else 'other'. A subset is what the sample's `extra` or the path of its "
              "source names, else 'other'.", soft=True)


def _bad_samples(page: Page, bad: Sequence[SampleError]) -> None:
    page.heading('Samples that cannot be used')
    if not bad:
        page.text('None was found. Planning reads headers and text only: a broken picture shows when it is decoded.')
        return
    kinds = Counter(error.kind for error in bad)
    page.text(', '.join(f'{kind}: {count}' for kind, count in kinds.most_common()))
    page.table(('source', 'kind', 'sample', 'reason'),
               [(error.source, error.kind, error.sample_id, error.reason[:400])
                for error in bad[:REASONS_SHOWN]])
    if len(bad) > REASONS_SHOWN:
        page.text(f'and {len(bad) - REASONS_SHOWN} more', soft=True)


def _histograms(page: Page, survey: Survey) -> None:
    page.heading('Lengths, costs and fill')
    by_source = {name: survey.of_source(name) for name in survey.sources}
    lengths = {name: [item.placed.length for item in items] for name, items in by_source.items()}
    costs = {name: [item.cost for item in items] for name, items in by_source.items()}
    if len(survey.sources) > LEGEND:
        page.legend(_colours(survey))
    page.histogram('Sample length', lengths, 'tokens', 'samples', log=_wide(lengths))
    power = 10 ** (3 * min(5, int(math.log10(max(1, *(cost for values in costs.values() for cost in values))) // 3)))
    unit = format_flops(power).split()[1]
    page.histogram('Sample cost', {name: [cost / power for cost in values] for name, values in costs.items()},
                   f'{unit} of a training step', 'samples', log=_wide(costs))
    page.histogram('Row fill', {'rows': (100 * survey.row_tokens() / survey.row_length).tolist()},
                   '% of the row', 'rows')


def _pack_map(page: Page, survey: Survey) -> None:
    rows, colours = survey.rows[:ROWS_SHOWN], _colours(survey)
    page.heading('Pack map')
    page.text(f'The first {len(rows)} of {len(survey.rows)} rows, one bar each, one piece for each sample; hatched is '
              'empty. Point at a piece for its name.', soft=True)
    page.legend(colours)
    page.strips([[(item.placed.length, colours[item.source], f'{item.id}: {item.placed.length} tokens, {item.source}')
                  for item in row] for row in rows], survey.row_length)


def _close_up(page: Page, number: int, shown: CloseUp, tokenizer: Any) -> None:
    item, encoded = shown.item, shown.encoded
    draw = item.placed.draw
    page.heading(f'{number}. {item.id}', level=3)
    media = shown.placed.media()
    shrink = f'; shrink factor {item.placed.shrink:.3g}' if media else ''
    page.text(f'source {item.source}; visit {draw.epoch}; {shown.facts()}{shrink}')
    if media:
        page.table(('medium', 'opened as', 'seen as', 'grid (t x h x w)', 'tokens', 'edits', 'limits'),
                   [(f'{index + 1}: {medium.kind}', _size(medium.source_size), _seen(medium),
                     ' x '.join(map(str, medium.grid)), encoded.token_counts[index],
                     ', '.join(type(edit).__name__ for edit in medium.edits) or 'none',
                     _limits(medium, shown.placed.limits)) for index, medium in enumerate(media)])
    images, videos = ([index for index, medium in enumerate(media) if medium.kind == kind]
                      for kind in ('image', 'video'))
    if images:
        page.pictures([picture for index in images[:MEDIA_SHOWN] for picture in shown.pictures(index)], layout='large')
    for index in videos[:MEDIA_SHOWN]:
        page.pictures(shown.pictures(index), layout='strip')
    hidden = sum(max(0, len(found) - MEDIA_SHOWN) for found in (images, videos))
    if hidden:
        page.text(f'and {hidden} more, which are not shown', soft=True)
    page.legend(ROLES[shown.kind])
    page.tokens(_token_pieces(shown, tokenizer))
    page.separate_plots(f'Position ids of sample {number}', shown.positions(), 'token')


def _token_pieces(shown: CloseUp, tokenizer: Any) -> list[tuple[str, str, str]]:
    """Pieces for the page: all of them, or the two ends of a long sample; titles are the ids."""
    pieces = [(piece.text.replace('\n', '↵\n'), piece.role, ' '.join(map(str, piece.ids[:4] if piece.role != 'visual'
                                                                        else piece.ids[:1])))
              for piece in shown.pieces(tokenizer)]
    first, last = SHOWN
    hidden = len(pieces) - first - last
    if hidden <= 0:
        return pieces
    return [*pieces[:first], (f'\n[{hidden:,} pieces are not shown]\n', '', ''), *pieces[-last:]]


def _colours(survey: Survey) -> dict[str, str]:
    return {name: series_colour(number) for number, name in enumerate(survey.sources)}


def _wide(values: dict[str, list]) -> bool:
    every = np.array([value for series in values.values() for value in series])
    return bool(every.min() > 0 and every.max() > 20 * np.median(every))


def _percent(share: float) -> str:
    return f'{100 * share:.1f} %'


def _size(size: tuple[int, int]) -> str:
    return f'{size[0]} x {size[1]}'


def _seen(medium: Media) -> str:
    if medium.kind == 'image':
        return _size(medium.size)
    return f'{_size(medium.size)}, {len(medium.frames)} frames, {medium.seconds_per_grid:.3g} s a group'


def _limits(medium: Media, limits: dict) -> str:
    """The limits that decided a medium's size."""
    if medium.kind == 'image':
        names = ('min_pixels', 'max_pixels')
    else:
        names = ('video_min_pixels', 'video_max_pixels', 'video_total_pixels', 'fps', 'min_frames', 'max_frames')
    return ', '.join(f'{name}={limits[name]}' for name in names)
