"""Speaker turns and language timelines as files: each format is one function in `span_formats`.

RTTM and UEM are read here too; ELAN documents, plots and the HTML player have modules of their own.
"""
