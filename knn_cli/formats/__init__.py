"""Speaker turns and language timelines as files. Every format is one function, in `span_tables`, `span_captions` or
`span_formats`; RTTM, UEM, ELAN, plots and the HTML player have modules of their own.
"""
