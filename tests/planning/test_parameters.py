from qvlkit.planning.parameters import count_parameters, total_parameters


def test_every_parameter_counts_once(small):
    model = small.build(device='meta')
    counts = count_parameters(model)
    assert list(counts) == ['vision_encoder', 'merger', 'language_model']
    assert sum(counts.values()) == total_parameters(model) == sum(p.numel() for p in model.parameters())
    tied = model.language_model.embed_tokens.weight.numel()
    assert counts['language_model'] < tied + sum(p.numel() for p in model.language_model.parameters())
