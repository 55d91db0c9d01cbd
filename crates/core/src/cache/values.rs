//! The value store: replies by command line, S3-FIFO replacement, a bound in bytes that holds.
//!
//! # What it is, and why this one
//!
//! S3-FIFO (Yang et al., *FIFO queues are all you need for cache eviction*, SOSP 2023): a small queue
//! that newcomers pass through, a main queue for those that were asked for again, and ghosts of those
//! that were not. Most keys of a real trace are asked for once; they leave through the small queue
//! without ever pushing out a popular one. A hit only counts up to three, it moves nothing.
//!
//! Refused: LRU (a scan empties it, a hit writes to four places); LFU (keeps what was popular
//! yesterday); W-TinyLFU (close, with twice the parts); 2Q and SIEVE (as good on some traces, worse on
//! others).
//!
//! # Shape
//!
//! Entries lie in numbered places and are threaded on two lists: their queue, and their *owner*, so
//! that all entries of one owner go in time proportional to their number. Command line and value share
//! one allocation. A lookup is one probe by hash, after which the bytes themselves are compared.
//!
//! # Bound
//!
//! `bytes()` never exceeds `max_bytes`. It counts data at its length plus an allocator's header, and
//! for every place, taken or not, its struct, list links, its part of the index at the index's largest
//! and of the ghosts. Places grow by a quarter at a time, and room is made before they do. They may
//! take three quarters of the bytes at most, so that a store once full of tiny values can still hold
//! larger ones.
//!
//! # Departures from the paper
//!
//! Queues are measured in bytes where bytes are short, in entries where entries are. The tenth of the
//! small queue is of what is stored now, not of the capacity, which is the same when full. An entry
//! that was removed for being out of date, rather than unpopular, leaves a ghost if it had earned the
//! main queue, so its next value goes there at once.

use hashbrown::HashTable;

use super::ghost::{self, Ghosts};
use super::slab::Slab;

/// The small queue's part of the store: one in this many.
const SMALL_PART: usize = 10;
/// Hits that take an entry from the small queue to the main queue.
const HITS_TO_STAY: u8 = 2;
/// Hits are counted up to this.
const MAX_HITS: u8 = 3;
/// What an allocator adds to a piece of memory, about.
pub(super) const ALLOCATION_BYTES: usize = 16;
/// What the index takes for each place at its largest: five bytes a bucket, and buckets double, once
/// for the load factor and once more for removed entries.
pub(super) const INDEX_BYTES: usize = 24;
/// No place.
const NIL: u32 = u32::MAX;

/// What a stored reply is found by, compared in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name<'a> {
    /// Where the reply came from.
    pub source: u32,
    /// What else the reply depends on.
    pub variant: u64,
    /// The whole command line.
    pub command: &'a [u8],
}

/// The two queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queue {
    Small,
    Main,
}

#[derive(Debug)]
struct Entry<M> {
    hash: u64,
    variant: u64,
    meta: M,
    /// The command line, then the value.
    data: Box<[u8]>,
    command_len: u32,
    /// What `meta` holds elsewhere.
    meta_bytes: usize,
    source: u32,
    owner: u32,
    owner_links: Links,
    queue_links: Links,
    queue: Queue,
    hits: u8,
}

impl<M> Entry<M> {
    /// Everything that is held for it beyond its place.
    fn held_bytes(&self) -> usize {
        self.data.len().saturating_add(self.meta_bytes)
    }

    fn is_named(&self, hash: u64, name: &Name<'_>) -> bool {
        self.hash == hash
            && self.source == name.source
            && self.variant == name.variant
            && self.data.get(..self.command_len as usize) == Some(name.command)
    }
}

#[derive(Debug, Clone, Copy)]
struct Links {
    newer: u32,
    older: u32,
}

#[derive(Debug, Clone, Copy)]
struct List {
    newest: u32,
    oldest: u32,
    len: usize,
    bytes: usize,
}

impl List {
    const EMPTY: Self = Self {
        newest: NIL,
        oldest: NIL,
        len: 0,
        bytes: 0,
    };
}

/// See the module's description. `M` is carried along with every entry and means nothing here.
#[derive(Debug)]
pub struct ValueStore<M> {
    max_bytes: usize,
    max_entries: usize,
    /// Bytes of `max_bytes` that something else uses.
    reserved: usize,
    entries: Slab<Entry<M>>,
    index: HashTable<u32>,
    small: List,
    main: List,
    ghosts: Ghosts,
    /// The newest entry of each owner, and how many there are.
    owners: Vec<(u32, u32)>,
    data_bytes: usize,
}

impl<M> ValueStore<M> {
    const PLACE_BYTES: usize =
        size_of::<Option<Entry<M>>>() + size_of::<u32>() + INDEX_BYTES + ghost::BYTES_PER_ENTRY;

    /// An empty store that never holds more than either bound.
    pub fn new(max_bytes: usize, max_entries: usize) -> Self {
        Self {
            max_bytes,
            max_entries: max_entries.min(NIL as usize - 1),
            reserved: 0,
            entries: Slab::new(),
            index: HashTable::new(),
            small: List::EMPTY,
            main: List::EMPTY,
            ghosts: Ghosts::default(),
            owners: Vec::new(),
            data_bytes: 0,
        }
    }

    /// How many replies are stored.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Everything the store takes, overhead included.
    pub fn bytes(&self) -> usize {
        self.data_bytes + self.entries.places() * Self::PLACE_BYTES
    }

    /// How many replies an owner has.
    pub fn owner_len(&self, owner: u32) -> usize {
        self.owners
            .get(owner as usize)
            .map_or(0, |(_, len)| *len as usize)
    }

    /// The place of a reply, without counting a hit.
    #[inline]
    pub fn find(&self, hash: u64, name: &Name<'_>) -> Option<u32> {
        let is_it = |place: &u32| {
            self.entries
                .get(*place)
                .is_some_and(|e| e.is_named(hash, name))
        };
        self.index.find(hash, is_it).copied()
    }

    /// What was stored with the reply at `place`.
    #[inline]
    pub fn meta(&self, place: u32) -> Option<&M> {
        self.entries.get(place).map(|entry| &entry.meta)
    }

    /// The reply at `place`, and what was stored with it; counts a hit.
    #[inline]
    pub fn hit(&mut self, place: u32) -> Option<(&[u8], &M)> {
        let entry = self.entries.get_mut(place)?;
        if entry.hits < MAX_HITS {
            entry.hits += 1;
        }
        let value = entry.data.get(entry.command_len as usize..)?;
        Some((value, &entry.meta))
    }

    /// Finds a reply and counts a hit.
    pub fn get(&mut self, hash: u64, name: &Name<'_>) -> Option<&[u8]> {
        let place = self.find(hash, name)?;
        self.hit(place).map(|(value, _)| value)
    }

    /// Stores a reply, evicting others as needed. One of the same name is replaced.
    ///
    /// Args: `owner` a small number; [`ValueStore::remove_owner`] takes all its replies out at once.
    /// `meta` comes with the bytes it holds outside of its struct.
    ///
    /// Returns false if it cannot fit; the one it was to replace is gone then too.
    pub fn insert(
        &mut self,
        hash: u64,
        name: &Name<'_>,
        owner: u32,
        (meta, meta_bytes): (M, usize),
        value: &[u8],
    ) -> bool {
        let replaced = self.find(hash, name).and_then(|place| self.take(place));
        let data_len = name.command.len().saturating_add(value.len());
        let held_bytes = data_len.saturating_add(meta_bytes);
        let Ok(command_len) = u32::try_from(name.command.len()) else {
            return false;
        };
        if owner == NIL || !self.make_place(held_bytes.saturating_add(ALLOCATION_BYTES)) {
            return false;
        }
        let was_popular = replaced.is_some_and(|entry| has_earned_main(&entry));
        let queue = match was_popular || self.ghosts.recall(hash, self.entries.len()) {
            true => Queue::Main,
            false => Queue::Small,
        };
        let mut data = Vec::with_capacity(data_len);
        data.extend_from_slice(name.command);
        data.extend_from_slice(value);
        let no_links = Links {
            newer: NIL,
            older: NIL,
        };
        let Some(place) = self.entries.take(Entry {
            hash,
            variant: name.variant,
            meta,
            data: data.into_boxed_slice(),
            command_len,
            meta_bytes,
            source: name.source,
            owner,
            owner_links: no_links,
            queue_links: no_links,
            queue,
            hits: 0,
        }) else {
            return false;
        };
        self.data_bytes += held_bytes + ALLOCATION_BYTES;
        self.link_owner(place, owner);
        self.push(place, queue);
        let entries = &self.entries;
        let hash_of = |place: &u32| entries.get(*place).map_or(0, |entry| entry.hash);
        self.index.insert_unique(hash, place, hash_of);
        true
    }

    /// Takes a reply out because it is out of date. If it was popular, its next value starts so.
    pub fn expire(&mut self, place: u32) {
        if let Some(entry) = self.take(place) {
            if has_earned_main(&entry) {
                self.ghosts.remember(entry.hash);
            }
        }
    }

    /// Takes all replies of an owner out, because they are out of date or, with `is_forgotten`,
    /// for good.
    pub fn remove_owner(&mut self, owner: u32, is_forgotten: bool) {
        while let Some(&(place, 1..)) = self.owners.get(owner as usize) {
            if is_forgotten {
                self.take(place);
            } else {
                self.expire(place);
            }
        }
    }

    /// Says how many of the bytes something else uses, after making room for it.
    ///
    /// Returns false, and changes nothing, if they are too many even for an empty store.
    pub fn reserve(&mut self, bytes: usize) -> bool {
        if self.entries.places() * Self::PLACE_BYTES + bytes > self.max_bytes {
            return false;
        }
        while self.bytes() + bytes > self.max_bytes {
            if !self.evict(false) {
                return false;
            }
        }
        self.reserved = bytes;
        true
    }

    /// Evicts until there is a free place and `bytes` more fit.
    fn make_place(&mut self, bytes: usize) -> bool {
        // What could not fit into an empty store evicts nothing.
        let fixed = self.reserved + self.entries.places() * Self::PLACE_BYTES;
        if fixed.saturating_add(bytes) > self.max_bytes || self.max_entries == 0 {
            return false;
        }
        loop {
            let is_full = self.entries.len() >= self.max_entries;
            let fits = self.bytes() + self.reserved + bytes <= self.max_bytes;
            if !is_full && fits && (self.entries.has_free() || self.grow(bytes)) {
                return true;
            }
            if !self.evict(is_full) {
                return false;
            }
        }
    }

    /// Adds places, by a quarter if that fits beside `bytes` of new data, else by fewer.
    fn grow(&mut self, bytes: usize) -> bool {
        let places = self.entries.places();
        let mut more = (places / 4)
            .max(16)
            .min(self.max_entries - places.min(self.max_entries));
        let fits = |more: usize| {
            (places + more) * Self::PLACE_BYTES <= self.max_bytes / 4 * 3
                && self.bytes() + self.reserved + more * Self::PLACE_BYTES + bytes <= self.max_bytes
        };
        while more > 0 && !fits(more) {
            more /= 2;
        }
        if more == 0 {
            return false;
        }
        self.entries.grow(more);
        let entries = &self.entries;
        let hash_of = |place: &u32| entries.get(*place).map_or(0, |entry| entry.hash);
        self.index
            .reserve(entries.places() - self.index.len(), hash_of);
        self.ghosts.resize(self.entries.places());
        true
    }

    /// Evicts one reply; false if there is none.
    fn evict(&mut self, by_entries: bool) -> bool {
        let size = |list: &List| if by_entries { list.len } else { list.bytes };
        let all = size(&self.small) + size(&self.main);
        let is_small_due = size(&self.small) * SMALL_PART >= all && self.small.len > 0;
        (is_small_due && self.evict_small()) || self.evict_main() || self.evict_small()
    }

    fn evict_small(&mut self) -> bool {
        while let Some(entry) = self.entries.get_mut(self.small.oldest) {
            let (place, hash) = (self.small.oldest, entry.hash);
            if entry.hits < HITS_TO_STAY {
                self.ghosts.remember(hash);
                self.take(place);
                return true;
            }
            entry.hits = 0;
            self.unlink(place);
            self.push(place, Queue::Main);
        }
        false
    }

    fn evict_main(&mut self) -> bool {
        // Each round takes one hit from an entry, and none has more than MAX_HITS: this ends.
        while let Some(entry) = self.entries.get_mut(self.main.oldest) {
            let place = self.main.oldest;
            if entry.hits == 0 {
                self.take(place);
                return true;
            }
            entry.hits -= 1;
            self.unlink(place);
            self.push(place, Queue::Main);
        }
        false
    }

    /// Takes an entry out of everything.
    fn take(&mut self, place: u32) -> Option<Entry<M>> {
        self.unlink(place);
        let entry = self.entries.free(place)?;
        self.data_bytes -= entry.held_bytes() + ALLOCATION_BYTES;
        if let Ok(found) = self.index.find_entry(entry.hash, |other| *other == place) {
            found.remove();
        }
        let Links { newer, older } = entry.owner_links;
        if let Some(other) = self.entries.get_mut(newer) {
            other.owner_links.older = older;
        }
        if let Some(other) = self.entries.get_mut(older) {
            other.owner_links.newer = newer;
        }
        if let Some((newest, len)) = self.owners.get_mut(entry.owner as usize) {
            *len -= 1;
            if *newest == place {
                *newest = older;
            }
        }
        Some(entry)
    }

    fn link_owner(&mut self, place: u32, owner: u32) {
        let owner = owner as usize;
        if owner >= self.owners.len() {
            self.owners.resize(owner + 1, (NIL, 0));
        }
        let (newest, len) = &mut self.owners[owner];
        let older = std::mem::replace(newest, place);
        *len += 1;
        if let Some(other) = self.entries.get_mut(older) {
            other.owner_links.newer = place;
        }
        if let Some(entry) = self.entries.get_mut(place) {
            entry.owner_links.older = older;
        }
    }

    fn list(&mut self, queue: Queue) -> &mut List {
        match queue {
            Queue::Small => &mut self.small,
            Queue::Main => &mut self.main,
        }
    }

    /// Puts an entry that is in no queue at the new end of one.
    fn push(&mut self, place: u32, queue: Queue) {
        let Some(entry) = self.entries.get_mut(place) else {
            return;
        };
        let bytes = entry.held_bytes() + Self::PLACE_BYTES;
        entry.queue = queue;
        let list = self.list(queue);
        let older = std::mem::replace(&mut list.newest, place);
        if older == NIL {
            list.oldest = place;
        }
        list.len += 1;
        list.bytes += bytes;
        if let Some(other) = self.entries.get_mut(older) {
            other.queue_links.newer = place;
        }
        if let Some(entry) = self.entries.get_mut(place) {
            entry.queue_links = Links { newer: NIL, older };
        }
    }

    /// Takes an entry out of its queue.
    fn unlink(&mut self, place: u32) {
        let Some(entry) = self.entries.get(place) else {
            return;
        };
        let (Links { newer, older }, queue) = (entry.queue_links, entry.queue);
        let bytes = entry.held_bytes() + Self::PLACE_BYTES;
        if let Some(other) = self.entries.get_mut(newer) {
            other.queue_links.older = older;
        }
        if let Some(other) = self.entries.get_mut(older) {
            other.queue_links.newer = newer;
        }
        let list = self.list(queue);
        list.len -= 1;
        list.bytes -= bytes;
        if list.newest == place {
            list.newest = older;
        }
        if list.oldest == place {
            list.oldest = newer;
        }
    }
}

fn has_earned_main<M>(entry: &Entry<M>) -> bool {
    entry.queue == Queue::Main || entry.hits >= HITS_TO_STAY
}
