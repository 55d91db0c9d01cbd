//! Numbered places that are reused, and that grow only when told to.
//!
//! A plain `Vec` doubles behind one's back; a cache that honours a bound in bytes has to know before
//! it grows, so that it can make room first.

/// Places for `T`, named by numbers that stay valid until the place is freed.
#[derive(Debug)]
pub(super) struct Slab<T> {
    places: Vec<Option<T>>,
    free: Vec<u32>,
    len: usize,
}

impl<T> Slab<T> {
    pub(super) fn new() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Places there are, taken or free.
    pub(super) fn places(&self) -> usize {
        self.places.len()
    }

    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// Adds free places.
    pub(super) fn grow(&mut self, places: usize) {
        let first = self.places.len();
        self.places.reserve_exact(places);
        self.places.resize_with(first + places, || None);
        self.free.reserve_exact(first + places - self.free.len());
        self.free
            .extend((first..first + places).rev().map(|place| place as u32));
    }

    /// Takes a free place; `None` when there is none.
    pub(super) fn take(&mut self, value: T) -> Option<u32> {
        let place = self.free.pop()?;
        self.places[place as usize] = Some(value);
        self.len += 1;
        Some(place)
    }

    pub(super) fn free(&mut self, place: u32) -> Option<T> {
        let value = self.places.get_mut(place as usize)?.take()?;
        self.free.push(place);
        self.len -= 1;
        Some(value)
    }

    #[inline]
    pub(super) fn get(&self, place: u32) -> Option<&T> {
        self.places.get(place as usize)?.as_ref()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, place: u32) -> Option<&mut T> {
        self.places.get_mut(place as usize)?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let places = self.places.iter().enumerate();
        places.filter_map(|(place, value)| Some((place as u32, value.as_ref()?)))
    }
}
