//! A report as plain text, one fact a line, outline by indentation.
//!
//! Does not know: how anything was found.

use std::io::{self, Write};

use super::report::{
    ManifestReport, Report, RunReport, SegmentReport, ShardReport, VbReport, WalReport, WalVerdict,
};
use crate::types::ItemMeta;

impl Report {
    /// Writes the report as text.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}: {} shards", self.path, self.shards.len())?;
        self.shards.iter().try_for_each(|shard| write_shard(out, shard))
    }
}

fn bytes(len: Option<u64>) -> String {
    len.map_or_else(|| "missing".to_owned(), |len| format!("{len} bytes"))
}

fn write_shard(out: &mut dyn Write, shard: &ShardReport) -> io::Result<()> {
    writeln!(out, "\nshard {}", shard.path)?;
    writeln!(out, "  files: wal {}, data {}", bytes(shard.wal_bytes), bytes(shard.data_bytes))?;
    for slot in &shard.slots {
        write!(out, "  superblock slot at block {}: ", slot.block)?;
        match (&slot.superblock, &slot.error) {
            (Some(found), _) => writeln!(
                out,
                "sequence {}, manifest generation {} at blocks {}+{}",
                found.sequence, found.manifest_generation, found.manifest_start, found.manifest_blocks
            )?,
            (None, error) => writeln!(out, "DAMAGED: {}", error.as_deref().unwrap_or("absent"))?,
        }
    }
    if let Some(root) = &shard.superblock {
        let geometry = &root.geometry;
        writeln!(
            out,
            "  shard {} of {}, uuid {:#018x}, {} vbuckets a bucket, log of {} segments of {} bytes, formatted at {} s",
            geometry.shard,
            geometry.shard_count,
            root.shard_uuid,
            geometry.vbucket_count,
            geometry.wal_segments,
            geometry.wal_segment_bytes,
            root.formatted_at
        )?;
    }
    match &shard.manifest {
        Some(manifest) => write_manifest(out, manifest)?,
        None => writeln!(out, "  manifest: NOT FOUND")?,
    }
    if let Some(wal) = &shard.wal {
        write_wal(out, wal)?;
    }
    for bucket in &shard.buckets {
        writeln!(out, "  bucket {} `{}` uuid {}", bucket.id, bucket.name.escape_debug(), bucket.uuid)?;
    }
    for vb in &shard.vbuckets {
        write_vbucket(out, vb)?;
    }
    let damage = &shard.damage;
    writeln!(out, "  damaged places: {}", damage.list.len() as u64 + damage.omitted)?;
    for place in &damage.list {
        writeln!(out, "    {} at offset {}: {}: {}", place.file, place.offset, place.what, place.error)?;
    }
    omitted(out, "    ", damage.omitted)
}

fn omitted(out: &mut dyn Write, indent: &str, count: u64) -> io::Result<()> {
    if count > 0 { writeln!(out, "{indent}… and {count} more") } else { Ok(()) }
}

fn write_manifest(out: &mut dyn Write, manifest: &ManifestReport) -> io::Result<()> {
    writeln!(
        out,
        "  manifest: {} batches, {} records, blocks {}..{} of {}, generation {}{}",
        manifest.batches,
        manifest.records,
        manifest.start,
        manifest.start.saturating_add(manifest.head),
        manifest.blocks,
        manifest.generation,
        if manifest.searched { ", found by searching" } else { "" }
    )?;
    writeln!(
        out,
        "    {}, log generation {}, log tail {}, next object {:#x}{}",
        if manifest.closed { "closed cleanly" } else { "NOT closed cleanly" },
        manifest.wal_generation,
        manifest.wal_tail,
        manifest.next_object,
        if manifest.incomplete { ", INCOMPLETE" } else { "" }
    )?;
    if let Some(torn) = &manifest.torn {
        writeln!(out, "    torn end, the next start cuts it: {torn}")?;
    }
    for batch in &manifest.list {
        writeln!(
            out,
            "    batch at offset {}: {} bytes, durable {}",
            batch.offset, batch.header.payload_len, batch.header.durable
        )?;
        for record in &batch.records {
            writeln!(out, "      {record:?}")?;
        }
    }
    omitted(out, "    ", manifest.omitted)
}

fn write_wal(out: &mut dyn Write, wal: &WalReport) -> io::Result<()> {
    writeln!(
        out,
        "  log: {} blocks in segments of {}, positions {}..{}, {} batches, {} records, durable {} at least",
        wal.blocks, wal.segment_blocks, wal.tail, wal.head, wal.batches, wal.records, wal.durable
    )?;
    writeln!(
        out,
        "    generation {}, manifest generation {}, {} batches before the tail, {} behind the end",
        wal.generation, wal.manifest_generation, wal.batches_before_tail, wal.batches_behind_end
    )?;
    match &wal.verdict {
        WalVerdict::Whole => writeln!(out, "    whole")?,
        WalVerdict::Torn { error } => writeln!(out, "    torn end, the next start cuts it: {error}")?,
        WalVerdict::Damaged { position, durable, error } => {
            writeln!(out, "    DAMAGED at position {position}, where {durable} is known durable: {error}")?;
        }
    }
    for vb in &wal.vbuckets {
        writeln!(
            out,
            "    bucket {} vb {}: {} records, seqno {}..={}, {} not flushed",
            vb.bucket, vb.vb, vb.records, vb.first, vb.last, vb.unflushed
        )?;
    }
    for batch in &wal.list {
        let header = &batch.header;
        writeln!(
            out,
            "    batch at offset {}, position {}: {} bytes, generation {}, durable {}",
            batch.offset, header.position, header.payload_len, header.generation, header.durable
        )?;
        for record in &batch.records {
            write!(out, "      bucket {} vb {} ", record.bucket, record.vb)?;
            write_meta(out, &record.meta)?;
            write!(out, " former {} `{}` {} bytes", record.former, record.key.0, record.value_len)?;
            match &record.value {
                Some(value) => writeln!(out, " `{}`", value.0)?,
                None => writeln!(out)?,
            }
        }
    }
    omitted(out, "    ", wal.omitted)
}

fn write_meta(out: &mut dyn Write, meta: &ItemMeta) -> io::Result<()> {
    let ItemMeta { seqno, cas, revid, flags, expiry, datatype, kind } = meta;
    write!(
        out,
        "seqno {seqno} {kind:?} cas {cas} revid {revid} flags {flags:#x} expiry {expiry} datatype {datatype}"
    )
}

fn write_vbucket(out: &mut dyn Write, vb: &VbReport) -> io::Result<()> {
    let counts = &vb.counts;
    writeln!(
        out,
        "  bucket {} vb {}: state {}, {} items, {} tombstones, flushed to {}, purged to {}, max cas {}, {} bytes",
        vb.bucket,
        vb.vb,
        vb.state,
        counts.items,
        counts.tombstones.saturating_sub(vb.purged.tombstones),
        counts.flushed_seqno,
        counts.purge_seqno.max(vb.purged.seqno),
        counts.max_cas,
        vb.disk_bytes
    )?;
    for part in &vb.purged.segments {
        let (id, records, bytes) = (part.segment, part.records, part.bytes);
        writeln!(out, "    {records} purged records, {bytes} bytes, are still in segment {id:#x}")?;
    }
    write!(out, "    failover log:")?;
    for entry in &vb.failover_log {
        write!(out, " ({:#x}, {})", entry.uuid.0, entry.seqno)?;
    }
    writeln!(out)?;
    vb.runs.iter().try_for_each(|run| write_run(out, run))?;
    vb.segments.iter().try_for_each(|segment| write_segment(out, segment))?;
    for marks in &vb.marks {
        let state = if marks.verified { "whole" } else { "DAMAGED" };
        writeln!(
            out,
            "    marks {:#x} at block {}: {} marks, {state}",
            marks.desc.id, marks.desc.block.start, marks.desc.marks
        )?;
        for mark in &marks.marks {
            writeln!(out, "      {} dead by {}", mark.dead, mark.by)?;
        }
        omitted(out, "      ", marks.omitted)?;
    }
    Ok(())
}

fn write_run(out: &mut dyn Write, run: &RunReport) -> io::Result<()> {
    let desc = &run.desc;
    writeln!(
        out,
        "    run {:#x}: {} keys ({} deleted), {} key bytes, up to seqno {}, {} parts ({} verified), filter {} bytes, \
         index at block {}",
        desc.id,
        desc.records,
        desc.tombstones,
        desc.key_bytes,
        desc.last,
        run.parts,
        run.parts_verified,
        run.filter_bytes,
        desc.index.start
    )?;
    for fence in &run.fences {
        writeln!(
            out,
            "      part at block {}: {}+{} blocks, {} keys from `{}`",
            fence.place, fence.key_blocks, fence.meta_blocks, fence.records, fence.first_key.0
        )?;
    }
    for key in &run.keys {
        write!(out, "      {}:`{}` ", key.collection, key.key.0)?;
        match &key.meta {
            Some(meta) => {
                write_meta(out, &meta.item)?;
                writeln!(out, " value {} bytes", meta.value_len)?;
            }
            None => {
                writeln!(
                    out,
                    "seqno {}{}, no metadata",
                    key.seqno,
                    if key.deleted { " deleted" } else { "" }
                )?;
            }
        }
    }
    omitted(out, "      ", run.omitted)
}

fn write_segment(out: &mut dyn Write, segment: &SegmentReport) -> io::Result<()> {
    let desc = &segment.desc;
    writeln!(
        out,
        "    segment {:#x}: seqno {}..={}, {} records, {} blocks ({} verified), index at block {}",
        desc.id,
        desc.first,
        desc.last,
        desc.records,
        segment.blocks,
        segment.blocks_verified,
        desc.index.start
    )?;
    for fence in &segment.fences {
        writeln!(
            out,
            "      {}+{}: seqno {}..={}, {} records",
            fence.place, fence.blocks, fence.first, fence.last, fence.records
        )?;
    }
    for document in &segment.documents {
        write!(out, "      ")?;
        write_meta(out, &document.meta)?;
        writeln!(out, " `{}` {} bytes `{}`", document.key.0, document.value_len, document.value.0)?;
    }
    omitted(out, "      ", segment.omitted)
}
