"""Raw values in, raw values out: a model together with its tokenizers."""
