"""Speaker turns and language timelines as files: each format is one function in `span_formats`. Readers of RTTM and UEM,
ELAN documents, plots and the HTML player are beside it.
"""
