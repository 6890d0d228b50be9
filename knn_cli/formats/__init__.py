"""Speaker turns and language timelines as files. Every format is one function, in `span_tables`, `span_captions` or
`span_formats`; RTTM, UEM, TextGrid, ELAN, plots and the HTML player have modules of their own. `transcripts` and
`word_readers` have words of speech recognition, `added_tiers` what is written into a file that is there.
"""
