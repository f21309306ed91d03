"""Pure torch modules: position maps, attention, transformer blocks.

They know nothing of modalities and import nothing of the library but `errors`.
"""
