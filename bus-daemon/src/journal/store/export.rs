//! Exporting: the bytes of a backlog as pieces, of which those in one block share their memory.

use bus_wire::PieceState;
use bytes::Bytes;

use super::backlog::BacklogV1;
use super::class::Item;
use super::medium::Medium;
use super::page::{Body, NONE, PAGE_HEADER, Record, Reference};
use super::reader::damaged_block;
use super::walk::Page;
use super::{Map, Result, Store};

/// Blocks that were read, for all backlogs that refer to them.
#[derive(Debug, Default)]
pub(crate) struct Exported(Map<Item, Bytes>);

#[cfg(test)]
impl Exported {
    /// How many they are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl<M: Medium> Store<M> {
    /// The bytes of the stream from the absolute offset `from` to the end of the backlog.
    ///
    /// # Errors
    /// Damage, the system's.
    pub(crate) fn export(
        &mut self,
        backlog: &BacklogV1,
        from: u64,
        known: &mut Exported,
    ) -> Result<Vec<PieceState>> {
        let mut pieces = Vec::new();
        if backlog.is_empty() {
            return Ok(pieces);
        }
        if !self.is_flushed() {
            self.flush()?;
        }
        let mut page = Page::default();
        let (mut offset, mut at) = (backlog.head_page, backlog.head_at as usize);
        let mut stream = backlog.start.saturating_sub(u64::from(backlog.head_sent));
        while stream < backlog.end {
            self.load(backlog, offset, &mut page)?;
            while at < page.end {
                let record = page.record(at)?;
                let skip = from.saturating_sub(stream).min(record.len.into()) as usize;
                if skip < record.len as usize {
                    pieces.push(self.piece(backlog, &page, &record, skip, known)?);
                }
                stream += u64::from(record.len);
                at = record.next;
            }
            if stream < backlog.end && page.next == NONE {
                return Err(page.damage(page.end, "bytes are missing"));
            }
            (offset, at) = (page.next, PAGE_HEADER);
        }
        Ok(pieces)
    }

    /// What a record stands for, without its first bytes.
    fn piece(
        &self,
        backlog: &BacklogV1,
        page: &Page,
        record: &Record,
        skip: usize,
        known: &mut Exported,
    ) -> Result<PieceState> {
        let len = record.len as usize - skip;
        Ok(match record.body {
            Body::Inline(start) => PieceState::Inline(page.bytes(start + skip, len).to_vec()),
            Body::Block(block) => {
                let body = self.block(backlog, block, known)?;
                PieceState::Shared(body.slice(body.len() - len..))
            }
            Body::Extent { item, from } => {
                let mut bytes = vec![0; len];
                let offset = item.offset() + u64::from(from) + skip as u64;
                self.fetch(backlog.owner, offset, &mut bytes)?;
                PieceState::Inline(bytes)
            }
        })
    }

    /// All of a block.
    fn block(&self, backlog: &BacklogV1, block: Reference, known: &mut Exported) -> Result<Bytes> {
        if let Some(body) = known
            .0
            .get(&block.item)
            .filter(|body| body.len() == block.len as usize)
        {
            return Ok(body.clone());
        }
        let mut body = vec![0; block.len as usize];
        self.fetch(backlog.owner, block.item.offset(), &mut body)?;
        if self.body_crc(block.item, &body) != block.crc {
            return Err(damaged_block(backlog.owner, block));
        }
        let body = Bytes::from(body);
        known.0.insert(block.item, body.clone());
        Ok(body)
    }
}
