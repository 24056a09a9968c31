package image

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/hanode/hanode/cluster"
)

func TestTheSumOfARegionDependsOnEveryBlockAndItsPlace(t *testing.T) {
	zero, one := make([]byte, Block), make([]byte, Block)
	one[Block-1] = 1
	if BlockSum(zero) != 0 || Part(7, BlockSum(zero)) != 0 {
		t.Error("a region that was never written has a sum")
	}
	if BlockSum(one) == 0 || Part(1, BlockSum(one)) == Part(2, BlockSum(one)) {
		t.Error("a block at another place has the same part")
	}
}

func TestNamesAndSizesThatCannotBeAreRefused(t *testing.T) {
	for _, name := range []string{"", ".", "../x", "a/b", "a b", "é", string(make([]byte, 64))} {
		if CheckName(name) == nil {
			t.Errorf("%q is accepted", name)
		}
	}
	if err := CheckName("calls-1_a.b"); err != nil {
		t.Error(err)
	}
	if CheckSize("a", 0, 10) == nil || CheckSize("a", 11, 10) == nil || CheckSize("a", 10, 10) != nil {
		t.Error("sizes")
	}
}

func one(name string, e cluster.Epoch, n, file uint64, base Head) Complete {
	return Complete{ID: n, Epoch: e, Regions: []Region{{Name: name, Base: base, Full: base == Head{}, Head: Head{Epoch: e, Number: n, FileSeq: file, Size: 10, Sum: n}}}}
}

func TestAStandbyRefusesWhatIsOldMixedOrDoesNotFit(t *testing.T) {
	var k Keeper
	first := one("a", 3, 5, 0, Head{})
	if _, err := k.Take(first, 0); err != nil {
		t.Fatal(err)
	}
	held := first.Regions[0].Head
	mixed := one("a", 3, 6, 0, held)
	mixed.Regions = append(mixed.Regions, one("b", 3, 7, 0, Head{}).Regions...)
	twice := one("a", 3, 6, 0, held)
	twice.Regions = append(twice.Regions, twice.Regions...)
	wrongBase := held
	wrongBase.Sum++
	for what, c := range map[string]struct {
		image Complete
		want  error
	}{
		"an older epoch":              {one("a", 2, 9, 0, held), ErrEpoch},
		"an older number":             {one("a", 3, 4, 0, held), ErrStale},
		"the difference to another":   {one("a", 3, 6, 0, wrongBase), ErrStale},
		"parts of different moments":  {mixed, ErrMixed},
		"a region twice":              {twice, ErrMixed},
		"no region":                   {Complete{}, ErrMixed},
		"the same difference again":   {one("a", 3, 5, 0, held), ErrStale},
		"a region of more than it is": {Complete{Regions: make([]Region, MaxParts+1)}, ErrMixed},
	} {
		if got, err := k.Take(c.image, 100); !errors.Is(err, c.want) || got != nil {
			t.Errorf("%s: %v, %v", what, got, err)
		}
	}
	if h, _ := k.Held("a"); h != held {
		t.Error("a refused image changed what is held")
	}
	if _, err := k.Admit(2, true); !errors.Is(err, ErrEpoch) {
		t.Errorf("an old epoch: %v", err)
	}
	tail := one("a", 4, 4, 0, Head{})
	tail.Regions[0].Head.Epoch = 3
	if _, err := k.Take(tail, 0); !errors.Is(err, ErrStale) {
		t.Errorf("an older image, not as a moment: %v", err)
	}
	tail.Moment = true
	if _, err := k.Take(tail, 0); err != nil {
		t.Errorf("the state of a later active in place of a tail: %v", err)
	}
	if _, err := k.Take(one("a", 3, 9, 0, held), 0); !errors.Is(err, ErrEpoch) {
		t.Errorf("what the active of before sends late: %v", err)
	}
	held = tail.Regions[0].Head
	k.Want("a", 7)
	if _, err := k.Take(one("a", 4, 6, 0, held), 0); !errors.Is(err, ErrLayout) {
		t.Errorf("a layout that the application does not read: %v", err)
	}
}

// What the keeper does step by step is the rule: the newest complete image whose files are there; and never one back.
func TestPromotionTakesTheNewestImageWhoseFilesAreThere(t *testing.T) {
	for seed := range uint64(3000) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var k Keeper
		var all []Head
		var files, at uint64
		last := Head{}
		for n := uint64(1); n < 12; n++ {
			at += rng.Uint64N(3)
			c := one("a", 1, n, at, last)
			c.Regions[0].Full = n == 1 || rng.IntN(4) == 0
			before, _ := k.Held("a")
			usable, err := k.Take(c, files)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			last = c.Regions[0].Head
			all = append(all, last)
			if rng.IntN(2) == 0 {
				files += rng.Uint64N(3)
				usable = append(usable, k.Files(files)...)
			}
			want, ok := Usable(all, files)
			got, have := k.Held("a")
			if ok != have || ok && got != want {
				t.Fatalf("seed %d: %+v is held with files at %d, want %+v", seed, got, files, want)
			}
			if got.Number < before.Number || len(usable) != int(got.Number-before.Number) {
				t.Fatalf("seed %d: from image %d to %d by %d images", seed, before.Number, got.Number, len(usable))
			}
		}
		waiting := k.Waiting()
		_, left := k.Promote(files)
		if len(left) != waiting || k.Waiting() != 0 {
			t.Fatalf("seed %d: %d left of %d", seed, len(left), waiting)
		}
		if want, ok := Usable(all, files); ok {
			if got, _ := k.Held("a"); got != want {
				t.Fatalf("seed %d: promoted with %+v, want %+v", seed, got, want)
			}
		}
	}
}

func TestImagesOfAnEndedTenureThatStillWaitAreDropped(t *testing.T) {
	var k Keeper
	if _, err := k.Take(one("a", 3, 5, 9, Head{}), 0); err != nil {
		t.Fatal(err)
	}
	if dropped, err := k.Admit(4, true); err != nil || len(dropped) != 0 || k.Waiting() != 1 {
		t.Fatal("a Bump keeps them", dropped, err)
	}
	if dropped, err := k.Admit(5, false); err != nil || len(dropped) != 1 || k.Waiting() != 0 {
		t.Fatal(dropped, err)
	}
}
