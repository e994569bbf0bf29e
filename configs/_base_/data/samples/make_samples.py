"""Draws twenty records of each kind of data, with their pictures and clips, into one folder for each kind.

    python configs/_base_/data/samples/make_samples.py [FOLDER] [KIND ...]

Always the same: nothing is drawn by chance that is not fixed by the kind and the number of the record. Every answer
follows from what was drawn. Pictures have at most 140 x 140 pixels and sides that are multiples of 28, so that a model
with patches of 14 pixels and a merge size of 2 sees each as it is. Fonts are matplotlib's; clips need PyAV.
"""
import json
import random
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROWS = 20
COLOURS = {'red': (214, 40, 40), 'blue': (38, 84, 208), 'green': (32, 140, 70), 'orange': (240, 140, 20),
           'purple': (130, 60, 170), 'black': (20, 20, 20), 'white': (250, 250, 250), 'yellow': (250, 205, 30)}
BRIGHT = ('red', 'blue', 'green', 'orange', 'purple')
SHAPES = ('circle', 'square', 'triangle')
ROOMS = {'upper left': (28, 28), 'upper right': (84, 28), 'lower left': (28, 84), 'lower right': (84, 84)}
GROUND, INK, LINE = (250, 250, 250), (20, 20, 20), (205, 205, 205)


def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans in a size of pixels."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / 'fonts' / 'ttf' / 'DejaVuSans.ttf', size)


def blank(width: int = 112, height: int = 112, ground=GROUND) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty picture and a pen for it."""
    picture = Image.new('RGB', (width, height), ground)
    return picture, ImageDraw.Draw(picture)


def save(picture: Image.Image, path: Path) -> str:
    """Write a small PNG; returns its name."""
    picture.quantize(24, dither=Image.Dither.NONE).save(path, optimize=True)
    return path.name


def shape(pen: ImageDraw.ImageDraw, kind: str, colour: str, middle: tuple[int, int], radius: int) -> list[int]:
    """Draw a shape; returns its box [x1, y1, x2, y2], the last pixels included."""
    (x, y), r = middle, radius
    box = [x - r, y - r, x + r, y + r]
    if kind == 'circle':
        pen.ellipse(box, fill=COLOURS[colour])
    elif kind == 'square':
        pen.rectangle(box, fill=COLOURS[colour])
    else:
        pen.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], fill=COLOURS[colour])
    return box


def label(pen: ImageDraw.ImageDraw, text: str, place: tuple[float, float], size: int = 10, fill=INK,
          anchor: str = 'lt') -> list[int]:
    """Write a line; returns its box."""
    pen.text(place, text, fill=fill, font=font(size), anchor=anchor)
    x1, y1, x2, y2 = pen.textbbox(place, text, font=font(size), anchor=anchor)
    return [int(x1), int(y1), int(np.ceil(x2)), int(np.ceil(y2))]


def scenes(kind: str) -> Iterator[tuple[int, random.Random, list[tuple[str, str, str, int]]]]:
    """(number, randomness, [(colour, shape, room, radius), ...]): two or three shapes, no two alike, each in a room."""
    seen = set()
    number = 0
    for attempt in range(10 * ROWS):
        draw = random.Random(f'{kind}/{attempt}')
        count = draw.choice((2, 3))
        found = [(colour, what, room, draw.randrange(14, 24)) for colour, what, room in zip(
            draw.sample(BRIGHT, count), draw.sample(SHAPES, count), draw.sample(sorted(ROOMS), count))]
        if tuple(found) in seen or number == ROWS:
            continue
        seen.add(tuple(found))
        yield number, draw, found
        number += 1


def draw_scene(found: list) -> tuple[Image.Image, list[list[int]]]:
    """The picture of a scene, and the boxes of its shapes."""
    picture, pen = blank()
    return picture, [shape(pen, what, colour, ROOMS[room], radius) for colour, what, room, radius in found]


def article(text: str) -> str:
    return f'{"an" if text[0] in "aeiou" else "a"} {text}'


def listed(items: list[str]) -> str:
    """'a, b and c'."""
    return items[0] if len(items) == 1 else f'{", ".join(items[:-1])} and {items[-1]}'


def chat(question: str, answer: str, *more: str, **media) -> dict:
    """A conversation record; `more` are further questions and answers in turn."""
    turns = [question, answer, *more]
    return {'messages': [{'role': ('user', 'assistant')[index % 2], 'content': text}
                         for index, text in enumerate(turns)], **media}


def caption(folder: Path) -> Iterator[dict]:
    for number, _, found in scenes('caption'):
        picture, _ = draw_scene(found)
        words = listed([f'{article(f"{colour} {what}")} in the {room}' for colour, what, room, _ in found])
        yield {'image': save(picture, folder / f'{number:02}.png'),
               'caption': f'{words[0].upper()}{words[1:]}, on a plain white ground.'}


# Name, direction of the bands, their colours, the capital.
FLAGS = [
    ('France', 'vertical', ('blue', 'white', 'red'), 'Paris'), ('Italy', 'vertical', ('green', 'white', 'red'), 'Rome'),
    ('Ireland', 'vertical', ('green', 'white', 'orange'), 'Dublin'),
    ('Belgium', 'vertical', ('black', 'yellow', 'red'), 'Brussels'),
    ('Romania', 'vertical', ('blue', 'yellow', 'red'), 'Bucharest'),
    ('Ivory Coast', 'vertical', ('orange', 'white', 'green'), 'Yamoussoukro'),
    ('Guinea', 'vertical', ('red', 'yellow', 'green'), 'Conakry'),
    ('Mali', 'vertical', ('green', 'yellow', 'red'), 'Bamako'), ('Peru', 'vertical', ('red', 'white', 'red'), 'Lima'),
    ('Nigeria', 'vertical', ('green', 'white', 'green'), 'Abuja'),
    ('Germany', 'horizontal', ('black', 'red', 'yellow'), 'Berlin'),
    ('the Netherlands', 'horizontal', ('red', 'white', 'blue'), 'Amsterdam'),
    ('Austria', 'horizontal', ('red', 'white', 'red'), 'Vienna'),
    ('Hungary', 'horizontal', ('red', 'white', 'green'), 'Budapest'),
    ('Bulgaria', 'horizontal', ('white', 'green', 'red'), 'Sofia'),
    ('Estonia', 'horizontal', ('blue', 'black', 'white'), 'Tallinn'),
    ('Lithuania', 'horizontal', ('yellow', 'green', 'red'), 'Vilnius'),
    ('Armenia', 'horizontal', ('red', 'blue', 'orange'), 'Yerevan'),
    ('Gabon', 'horizontal', ('green', 'yellow', 'blue'), 'Libreville'),
    ('Russia', 'horizontal', ('white', 'blue', 'red'), 'Moscow')]


def visual_knowledge(folder: Path) -> Iterator[dict]:
    for number, (name, direction, bands, capital) in enumerate(FLAGS):
        picture, pen = blank(140, 84)
        for index, colour in enumerate(bands):
            box = ([140 * index // 3, 0, 140 * (index + 1) // 3 - 1, 83] if direction == 'vertical' else
                   [0, 28 * index, 139, 28 * index + 27])
            pen.rectangle(box, fill=COLOURS[colour])
        order = 'from left to right' if direction == 'vertical' else 'from top to bottom'
        yield {'image': save(picture, folder / f'{number:02}.png'),
               'caption': f'The flag of {name}: three {direction} bands, {order} {listed(list(bands))}. The capital of '
                          f'{name} is {capital}.'}


LINES = [
    ('Guten Morgen', 'Ausgang links', 'bitte ziehen'), ('Straße gesperrt', 'Umleitung', 'über Köln'),
    ('Bonjour à tous', 'entrée libre', 'fermé le lundi'), ('Boulangerie', 'pain du jour', 'café crème'),
    ('Buenos días', 'se vende piso', 'mañana también'), ('Panadería', 'abierto de 9 a 14', 'niños gratis'),
    ('Buona sera', 'chiuso per ferie', 'torniamo presto'), ('Biglietteria', 'lunedì chiuso', 'città vecchia'),
    ('Bom dia', 'saída de emergência', 'não fumar'), ('Padaria', 'pão quente', 'avô e avó'),
    ('Доброе утро', 'вход свободный', 'касса закрыта'), ('Аптека', 'открыто до 22', 'второй этаж'),
    ('Xin chào', 'phở bò tái', 'mở cửa lúc 7'), ('Nhà sách', 'giảm giá', 'thứ hai nghỉ'),
    ('Καλημέρα', 'είσοδος', 'πλατεία'), ('Günaydın', 'çıkış', 'açık büfe'), ('Dzień dobry', 'wyjście', 'zamknięte'),
    ('Total 48.20', 'VAT 7.70', 'card ending 0417'), ('Gate B12', 'boarding 17:45', 'seat 23A'),
    ('Do not enter', 'wet paint', 'back at 3 pm')]


def ocr(folder: Path) -> Iterator[dict]:
    for number, lines in enumerate(LINES):
        picture, pen = blank(140, 84, (244, 240, 228))
        place, found = 8, []
        for line, size in zip(lines, (14, 11, 11)):
            box = label(pen, line, (8, place), size)
            found.append({'bbox_2d': box, 'text_content': line})
            place = box[3] + 8
        answer = '[' + ',\n '.join(json.dumps(entry, ensure_ascii=False) for entry in found) + ']'
        yield chat('<image>\nRead every line, with its box, as JSON.', answer,
                   images=[save(picture, folder / f'{number:02}.png')])


# Symbol, atomic number, English and Chinese names.
ELEMENTS = [('H', 'hydrogen', '氢'), ('He', 'helium', '氦'), ('Li', 'lithium', '锂'), ('Be', 'beryllium', '铍'),
            ('B', 'boron', '硼'), ('C', 'carbon', '碳'), ('N', 'nitrogen', '氮'), ('O', 'oxygen', '氧'),
            ('F', 'fluorine', '氟'), ('Ne', 'neon', '氖'), ('Na', 'sodium', '钠'), ('Mg', 'magnesium', '镁')]


def text(folder: Path) -> Iterator[dict]:
    for index in range(1, 11):
        (_, before, before_zh), (symbol, name, name_zh), (_, after, after_zh) = ELEMENTS[index - 1:index + 2]
        number = index + 1
        yield {'text': f'{name.capitalize()} is the chemical element with the symbol {symbol} and the atomic number '
                       f'{number}: its nucleus holds {number} protons. In the periodic table it follows {before} and '
                       f'comes before {after}.'}
        yield {'text': f'{name_zh}是一种化学元素，符号为 {symbol}，原子序数为 {number}，原子核含有 {number} 个质子。'
                       f'在元素周期表中，它排在{before_zh}之后、{after_zh}之前。'}


def interleaved(folder: Path) -> Iterator[dict]:
    for number, _, found in scenes('interleaved'):
        picture, pen = blank()
        images, texts = [None], [f'How to draw sign number {number + 1}. Begin with an empty white field.']
        for step, (colour, what, room, radius) in enumerate(found):
            texts += [f'{("First", "Then", "At last")[step]}, put {article(f"{colour} {what}")} into the {room}:', None]
            shape(pen, what, colour, ROOMS[room], radius)
            images += [None, save(picture, folder / f'{number:02}_{step}.png')]
        texts.append(f'The sign is done; it has {len(found)} shapes.')
        yield {'images': [*images, None], 'texts': texts}


def vqa(folder: Path) -> Iterator[dict]:
    for number, _, found in scenes('vqa'):
        picture, _ = draw_scene(found)
        colour, what = found[0][:2]
        other, second = found[1][1], found[1][0]
        counts = {2: 'Two', 3: 'Three'}
        yield chat(f'<image>\nWhat colour is the {what}?', f'It is {colour}.', 'How many shapes are there?',
                   f'{counts[len(found)]}: {listed([f"the {kind}" for _, kind, _, _ in found])}.',
                   f'Where is the {second} {other}?', f'In the {found[1][2]}.',
                   images=[save(picture, folder / f'{number:02}.png')])


def maths(folder: Path) -> Iterator[dict]:
    triples = [(3, 4, 5), (6, 8, 10), (5, 12, 13), (9, 12, 15), (8, 15, 17), (12, 16, 20), (7, 24, 25)]
    for number in range(ROWS):
        draw = random.Random(f'maths/{number}')
        picture, pen = blank()
        if number % 3 == 0:
            a, b, c = triples[number // 3]
            pen.polygon([(24, 16), (24, 88), (98, 88)], outline=INK)
            label(pen, str(b), (60, 92), anchor='mt')
            label(pen, str(a), (18, 52), anchor='rm')
            question = 'The triangle has a right angle. How long is its longest side?'
            answer = (f'By Pythagoras the square of that side is {a}² + {b}² = {a * a} + {b * b} = {c * c}. '
                      f'So the side is √{c * c} = {c}.')
        elif number % 3 == 1:
            a, b = draw.sample(range(3, 30), 2)
            pen.rectangle([24, 28, 96, 80], outline=INK)
            label(pen, str(a), (60, 84), anchor='mt')
            label(pen, str(b), (20, 54), anchor='rm')
            question = 'What are the area and the perimeter of the rectangle?'
            answer = f'Its area is {a} × {b} = {a * b}. Its perimeter is 2 × ({a} + {b}) = {2 * (a + b)}.'
        else:
            values = draw.sample(range(2, 20), 4)
            bars(pen, dict(zip('ABCD', values)), (10, 12, 102, 98))
            question = 'What is the mean of the four bars?'
            total = sum(values)
            answer = f'The sum is {" + ".join(map(str, values))} = {total}. The mean is {total} / 4 = {total / 4:g}.'
        yield chat(f'<image>\n{question}', answer, images=[save(picture, folder / f'{number:02}.png')])


def bars(pen: ImageDraw.ImageDraw, values: dict[str, int], box: tuple[int, int, int, int]) -> None:
    """A bar chart inside `box`: names below, values on top."""
    x1, y1, x2, y2 = box
    step, top = (x2 - x1) / len(values), max(values.values())
    pen.line([x1, y2 - 12, x2, y2 - 12], fill=INK)
    for index, (name, value) in enumerate(values.items()):
        left, height = x1 + step * index, (y2 - y1 - 24) * value / top
        pen.rectangle([left + step / 4, y2 - 12 - height, left + 3 * step / 4, y2 - 12],
                      fill=COLOURS[BRIGHT[index % len(BRIGHT)]])
        label(pen, str(value), (left + step / 2, y2 - 14 - height), 8, anchor='mb')
        label(pen, name, (left + step / 2, y2), 8, anchor='mb')


def grounding(folder: Path) -> Iterator[dict]:
    for number, draw, found in scenes('grounding'):
        picture, boxes = draw_scene(found)
        names = [f'{colour} {what}' for colour, what, *_ in found]
        objects = [{'bbox': box, 'label': name} for box, name in zip(boxes, names)]
        if number % 2:
            middle = ROOMS[found[-1][2]]
            objects[-1] = {'point': list(middle), 'label': names[-1]}
        else:
            absent = next(f'{colour} {what}' for colour in BRIGHT for what in draw.sample(SHAPES, 3)
                          if f'{colour} {what}' not in names)
            objects.append({'bbox': None, 'label': absent})
        yield {'image': save(picture, folder / f'{number:02}.png'), 'objects': objects}


TOWNS = ('Oslo', 'Lima', 'Cairo', 'Kyoto', 'Quito', 'Riga', 'Accra', 'Turin', 'Hanoi', 'Perth')
GOODS = ('tea', 'rice', 'wool', 'salt', 'oil')


def document(folder: Path) -> Iterator[dict]:
    system = {'role': 'system', 'content': 'You are an AI specialized in recognizing and extracting text from images. '
              'Your mission is to analyze the image document and generate the result in QwenVL Document Parser HTML '
              'format using specified tags while maintaining user privacy and data integrity.'}
    for number in range(ROWS):
        draw = random.Random(f'document/{number}')
        picture, pen = blank(112, 168)
        town, values = TOWNS[number // 2], dict(zip(draw.sample(GOODS, 3), draw.sample(range(10, 100), 3)))
        title, line = f'{town}, part {number % 2 + 1}', f'Sold: {sum(values.values())} bags.'
        html = [f'<h2 data-bbox="{at(label(pen, title, (8, 8), 12))}">{title}</h2>',
                f'<p data-bbox="{at(label(pen, line, (8, 30), 9))}">{line}</p>']
        cells = ''.join(f'<tr><td>{name}</td><td>{value}</td></tr>' for name, value in values.items())
        if number % 2:
            box = (8, 52, 104, 160)
            bars(pen, values, box)
            html.append(f'<div class="chart" data-bbox="{at(box)}"><img data-bbox="{at(box)}" />'
                        f'<table>{cells}</table></div>')
        else:
            box = (8, 52, 104, 106)
            for row, (name, value) in enumerate(values.items()):
                pen.rectangle([8, 52 + 18 * row, 104, 70 + 18 * row], outline=INK)
                label(pen, name, (13, 57 + 18 * row), 9)
                label(pen, str(value), (70, 57 + 18 * row), 9)
            pen.line([64, 52, 64, 106], fill=INK)
            html.append(f'<style>table{{id}} {{border: 1px solid}}</style><table data-bbox="{at(box)}" '
                        f'class="table{{id}}">{cells}</table>'.replace('{id}', '1'))
            a, b = draw.sample(range(2, 10), 2)
            box = label(pen, f'{a}x + {b} = {a + b}', (8, 120), 11)
            html.append(f'<div class="formula" data-bbox="{at(box)}"><img data-bbox="{at(box)}" />'
                        f'<div>{a}x + {b} = {a + b}</div></div>')
        record = chat('<image>\nQwenVL HTML', '<html><body>\n' + '\n'.join(html) + '\n</body></html>',
                      images=[save(picture, folder / f'{number:02}.png')])
        yield {**record, 'messages': [system, *record['messages']]}


def at(box) -> str:
    """A box as QwenVL HTML has it."""
    return ' '.join(map(str, box))


def write_clip(path: Path, frames: list[Image.Image], rate: int) -> str:
    """An H.264 file of a steady rate; returns its name."""
    import av
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=Fraction(rate), options={
            'crf': '28', 'preset': 'slow', 'threads': '1', 'x264-params': 'keyint=64:no-info=1'})
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, 'yuv420p'
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_image(picture)
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.name


def clock(seconds: float) -> str:
    """mm:ss.ff."""
    return f'{int(seconds // 60):02}:{seconds % 60:05.2f}'


def video(folder: Path) -> Iterator[dict]:
    """Eight seconds at 4 frames a second: a shape crosses the field, or comes and goes."""
    ways = {'from left to right': (1, 0), 'from right to left': (-1, 0), 'from top to bottom': (0, 1),
            'from bottom to top': (0, -1)}
    for number in range(ROWS):
        draw = random.Random(f'video/{number}')
        colour, what = BRIGHT[number % 5], SHAPES[number // 5 % 3]
        frames = []
        if number % 2:
            way = list(ways)[number // 2 % 4]
            dx, dy = ways[way]
            for index in range(32):
                picture, pen = blank(84, 84)
                shape(pen, what, colour, (42 + dx * round(1.8 * (index - 15.5)), 42 + dy * round(
                    1.8 * (index - 15.5))), 10)
                frames.append(picture)
            record = chat('<video>\nWhat moves, and which way?', f'{article(f"{colour} {what}").capitalize()} moves '
                          f'{way}.')
        else:
            start, length = draw.randrange(1, 4), draw.randrange(2, 5)
            for index in range(32):
                picture, pen = blank(84, 84)
                if start <= index / 4 < start + length:
                    shape(pen, what, colour, (42, 42), 24)
                frames.append(picture)
            if number % 4:
                record = chat(f'<video>\nWhen is the {what} there? Answer in seconds.',
                              f'From {start:.1f} seconds to {start + length:.1f} seconds.')
            else:
                event = {'start_time': clock(start), 'end_time': clock(start + length),
                         'description': f'{article(f"{colour} {what}")} is there'}
                record = chat('<video>\nGive the event with its time as JSON, in mm:ss.ff.',
                              json.dumps([event]))
        yield {**record, 'videos': [write_clip(folder / f'{number:02}.mp4', frames, 4)]}


APPS = {'Mail': ('Sync', 'Alerts', 'Images', 'Sound'), 'Maps': ('Traffic', 'Voice', 'Night', 'Tilt'),
        'Music': ('Shuffle', 'Loop', 'Lyrics', 'Mix'), 'Photos': ('Backup', 'Flash', 'Grid', 'Timer'),
        'Clock': ('Alarm', 'Snooze', 'Chime', '24 h')}


def home_screen() -> tuple[Image.Image, dict[str, list[int]]]:
    """A phone's home screen, and the middle of each app's tile."""
    picture, pen = blank(84, 168, (228, 234, 244))
    label(pen, 'Home', (42, 6), 10, anchor='mt')
    middles = {}
    for index, name in enumerate(APPS):
        x, y = 24 + 36 * (index % 2), 42 + 42 * (index // 2)
        pen.rounded_rectangle([x - 12, y - 12, x + 12, y + 12], 4, fill=COLOURS[BRIGHT[index]])
        label(pen, name, (x, y + 14), 8, anchor='mt')
        middles[name] = [x, y]
    return picture, middles


def app_screen(app: str, on: str | None) -> tuple[Image.Image, dict[str, list[int]]]:
    """An app's screen with four switches, of which `on` is on; and the middle of each switch."""
    picture, pen = blank(84, 168)
    label(pen, app, (42, 6), 11, anchor='mt')
    middles = {}
    for index, name in enumerate(APPS[app]):
        y = 40 + 30 * index
        label(pen, name, (6, y), 9, anchor='lm')
        pen.rounded_rectangle([54, y - 7, 78, y + 7], 7, fill=COLOURS['green'] if name == on else LINE)
        middle = 71 if name == on else 61
        pen.ellipse([middle - 5, y - 5, middle + 5, y + 5], fill=GROUND)
        middles[name] = [66, y]
    return picture, middles


def agent(folder: Path) -> Iterator[dict]:
    home, tiles = home_screen()
    save(home, folder / 'home.png')
    for number in range(ROWS):
        app, switch = list(APPS)[number % 5], list(APPS.values())[number % 5][number // 5]
        before, switches = app_screen(app, None)
        after, _ = app_screen(app, switch)
        yield {'task': f'Switch on {switch} in {app}.', 'platform': 'mobile', 'steps': [
            {'screenshot': 'home.png', 'thought': f'I see the home screen and open {app}.',
             'action': {'action': 'click', 'coordinate': tiles[app]}},
            {'screenshot': save(before, folder / f'{app.lower()}.png'),
             'thought': f'{switch} is off, so I click its switch.',
             'action': {'action': 'click', 'coordinate': switches[switch]}},
            {'screenshot': save(after, folder / f'{app.lower()}_{number // 5}.png'), 'thought': f'{switch} is on.',
             'action': {'action': 'terminate', 'status': 'success'}}]}


def long_video(folder: Path) -> Iterator[dict]:
    """Two minutes and eight seconds at 2 frames a second: sixteen events of eight seconds, of which four are told."""
    every = [(colour, what) for colour in BRIGHT for what in SHAPES]
    for number in range(ROWS):
        draw = random.Random(f'long_video/{number}')
        events = draw.sample(every, len(every))
        events.insert(draw.randrange(len(events) + 1), None)  # the field is empty for once
        frames = []
        for event in events:
            picture, pen = blank(84, 84)
            if event:
                shape(pen, event[1], event[0], (42, 42), 24)
            frames += [picture] * 16
        gap = events.index(None)
        told = sorted(draw.sample([index for index in range(16) if index != gap], 4))
        found = [{'start_time': clock(8 * index), 'end_time': clock(8 * index + 8),
                  'description': article(' '.join(events[index]))} for index in told]
        names = listed([f'the {colour} {what}' for colour, what in draw.sample([events[index] for index in told], 4)])
        yield chat(f'<video>\nWhen are {names} shown? Answer in the order of time, as JSON in mm:ss.ff.',
                   '[' + ',\n '.join(map(json.dumps, found)) + ']', 'From when to when is the field empty?',
                   f'From {8 * gap:.1f} seconds to {8 * gap + 8:.1f} seconds.',
                   videos=[write_clip(folder / f'{number:02}.mp4', frames, 2)])


def long_document(folder: Path) -> Iterator[dict]:
    """A stock list of 64 shelves with a chart at each end; its last lines ask what stands far above."""
    for number in range(ROWS):
        draw = random.Random(f'long_document/{number}')
        town = TOWNS[number // 2]
        shelves = {f'{letter}{place}': (draw.randrange(100, 1000), draw.choice(GOODS), draw.randrange(1, 31))
                   for letter in 'ABCDEFGH' for place in range(1, 9)}
        totals = {good: sum(count for count, name, _ in shelves.values() if name == good) for good in GOODS}
        most, least = max(totals, key=totals.get), min(totals, key=totals.get)
        images = []
        for name, values in (('goods', totals), ('rows', {letter: sum(
                count for shelf, (count, *_) in shelves.items() if shelf[0] == letter) // 100 for letter in 'ABCD'})):
            picture, pen = blank(140, 112)
            bars(pen, values, (4, 8, 136, 106))
            images.append(save(picture, folder / f'{number:02}_{name}.png'))
        lines = [f'Shelf {shelf}: {count} bags of {good}, counted on {day} June.'
                 for shelf, (count, good, day) in shelves.items()]
        asked = draw.sample(sorted(shelves), 2)
        yield {'text': '\n'.join([
            f'Stock of the warehouse in {town}, list {number % 2 + 1}.', '<image>', 'Bags of each good, all shelves.',
            *lines, '<image>', 'Hundreds of bags in the rows A to D.',
            *(f'Question: what is on shelf {shelf}? Answer: {shelves[shelf][0]} bags of {shelves[shelf][1]}.'
              for shelf in asked),
            f'Question: of which good is there most, and of which least? Answer: most of {most}, least of {least}.']),
            'images': images}


KEYS = ('7', '8', '9', '/', '4', '5', '6', '*', '1', '2', '3', '-', 'C', '0', '=', '+')


def calculator(shown: str) -> tuple[Image.Image, dict[str, list[int]]]:
    """A calculator's window that shows a text, and the middle of each key."""
    picture, pen = blank(112, 112, (232, 232, 232))
    pen.rectangle([6, 4, 105, 23], fill=GROUND, outline=INK)
    label(pen, shown or '0', (101, 14), 12, anchor='rm')
    middles = {}
    for index, key in enumerate(KEYS):
        x, y = 18 + 25 * (index % 4), 36 + 21 * (index // 4)
        pen.rectangle([x - 11, y - 9, x + 11, y + 9], fill=GROUND, outline=LINE)
        label(pen, key, (x, y), 11, anchor='mm')
        middles[key] = [x, y]
    return picture, middles


def long_agent(folder: Path) -> Iterator[dict]:
    for number in range(ROWS):
        draw = random.Random(f'long_agent/{number}')
        first, second, sign = draw.randrange(100, 1000), draw.randrange(10, 100), '+-*'[number % 3]
        result = str({'+': first + second, '-': first - second, '*': first * second}[sign])
        word, shown, steps = {'+': 'plus', '-': 'minus', '*': 'times'}[sign], '', []
        for key in f'{first}{sign}{second}=':
            picture, middles = calculator(shown)
            steps.append({'screenshot': save(picture, folder / f'{number:02}_{len(steps)}.png'),
                          'thought': f'The display shows {shown or 0}; next is the key {key}.',
                          'action': {'action': 'left_click', 'coordinate': middles[key]}})
            shown = result if key == '=' else shown + key
        picture, _ = calculator(shown)
        steps.append({'screenshot': save(picture, folder / f'{number:02}_{len(steps)}.png'),
                      'thought': f'The display shows {result}, which is {first} {word} {second}.',
                      'action': {'action': 'terminate', 'status': 'success'}})
        yield {'task': f'Compute {first} {word} {second} with the calculator.', 'platform': 'computer', 'steps': steps}


MAKERS = {maker.__name__: maker for maker in (
    caption, visual_knowledge, ocr, text, interleaved, vqa, maths, grounding, document, video, agent, long_video,
    long_document, long_agent)}


def make(root: Path, kinds: list[str]) -> None:
    """Write the records of some kinds, each into ROOT/KIND/KIND.jsonl with its media beside it."""
    for kind in kinds:
        folder = root / kind
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(record, ensure_ascii=False) + '\n' for record in MAKERS[kind](folder)]
        if len(lines) != ROWS or len(set(lines)) != ROWS:
            raise ValueError(f'{kind}: expected {ROWS} different records, got {len(set(lines))} of {len(lines)}')
        (folder / f'{kind}.jsonl').write_text(''.join(lines), encoding='utf-8')


if __name__ == '__main__':
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent, sys.argv[2:] or list(MAKERS))
