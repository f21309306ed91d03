"""AION-1's codecs: sky images, spectra, catalogs, maps and numbers to tokens and back."""
