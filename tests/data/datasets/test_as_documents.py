from qvlkit.data.datasets.as_documents import AsDocuments
from qvlkit.data.datasets.picture_tasks import PictureTasks
from qvlkit.registry import DATASETS
from qvlkit.structures import Box, Media


def test_a_conversation_becomes_one_document():
    questions = PictureTasks(8)
    documents, captions = AsDocuments(questions), AsDocuments(questions, questions=False)
    for index in range(8):
        turns = questions[index].turns
        document, caption = documents[index], captions[index]
        assert [turn.role for turn in document.turns] == ['document'] == [turn.role for turn in caption.turns]
        assert document.media() == questions[index].media() and document.extra == questions[index].extra
        text = [item for item in document.turns[0].content if not isinstance(item, Media)]
        expected = [item for turn in turns for item in turn.content if not isinstance(item, Media)]
        assert [item for item in text if item not in (' ', '\n')] == expected
        answers = [item for turn in turns[1::2] for item in turn.content]
        assert [item for item in caption.turns[0].content[1:] if item != '\n'] == answers


def test_boxes_stay_boxes_and_names_are_kept():
    dataset = DATASETS.build(dict(type='AsDocuments', dataset=dict(type='PictureTasks', size=4, tasks=['locate'])))
    assert any(isinstance(item, Box) for item in dataset[0].turns[0].content)
    assert len(dataset) == 4 and dataset.name == dataset[0].source == 'picture_tasks'
