"""The HCC-TACE-Seg collection: its clinical table, what the archive holds, download, import to cases, quality."""
