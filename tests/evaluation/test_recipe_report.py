"""The table of stages and its page, from the summaries that stages leave."""
import json

from qvlkit.evaluation.recipe_report import cost_rows, report_stages, result_rows

SFT = dict(stage='sft', trainer='SFTTrainer', steps=1200, tokens=1_234_567, trainable=10, parameters=20, seconds=3725.2,
           loss=0.12345, init='model from work/long_context', results={
               'count': dict(unit='%', before=0.1, after=0.75, chance=0.17, count=100),
               'caption loss': dict(before=2.0, after=1.5)})
DPO = dict(SFT, stage='dpo', trainer='DPOTrainer', loss=None, results={})


def test_rows_say_what_the_summaries_say():
    assert cost_rows([SFT, DPO]) == [
        ('sft', 'SFTTrainer', '1,200', '1,234,567', '10 of 20', '1:02:05', '0.1235'),
        ('dpo', 'DPOTrainer', '1,200', '1,234,567', '10 of 20', '1:02:05', '–')]
    assert result_rows([SFT, DPO]) == [('sft', 'count', '17.0 %', '10.0 %', '75.0 %'),
                                       ('sft', 'caption loss', '–', '2.0000', '1.5000')]


def test_the_page_holds_finished_stages_in_order(tmp_path, capsys):
    for summary in (DPO, SFT):
        folder = tmp_path / summary['stage']
        folder.mkdir()
        (folder / 'summary.json').write_text(json.dumps(summary))
    (tmp_path / 'sft' / 'log.jsonl').write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    page = report_stages(tmp_path, ['visual', 'sft', 'dpo', 'sft']).read_text()
    assert page.index('<h2>sft') < page.index('<h2>dpo') and '<h2>visual' not in page
    assert '75.0 %' in page and 'model from work/long_context' in page and 'sft: loss' in page
    printed = capsys.readouterr().out
    assert '75.0 %' in printed and 'DPOTrainer' in printed


def test_without_a_finished_stage_there_is_no_page(tmp_path):
    assert report_stages(tmp_path, ['sft']) is None and not list(tmp_path.iterdir())
