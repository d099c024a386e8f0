"""Files of judged queries: folders in the BEIR layout, TREC files, and tables of query, text and grade."""
