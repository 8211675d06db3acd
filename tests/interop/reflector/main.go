// Reflector follows one resource of the aggregated API as controllers do, with client-go's own reflector, and prints
// each change of its store as a line of JSON. It ends when its standard input does.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// change is what is printed of one call of the store.
type change struct {
	Op      string   `json:"op"`
	Name    string   `json:"name,omitempty"`
	Names   []string `json:"names,omitempty"`
	Version string   `json:"version"`
	State   string   `json:"state,omitempty"`
}

// printer is a store that keeps what a reflector gives it, and says so.
type printer struct {
	cache.Store
	out *json.Encoder
}

func state(object *unstructured.Unstructured) string {
	for _, field := range []string{"state", "status"} {
		if found, ok, _ := unstructured.NestedString(object.Object, "status", field); ok {
			return found
		}
	}
	return ""
}

func (p *printer) say(op string, object any) {
	one := object.(*unstructured.Unstructured)
	p.out.Encode(change{Op: op, Name: one.GetName(), Version: one.GetResourceVersion(), State: state(one)})
}

func (p *printer) Add(object any) error {
	p.say("add", object)
	return p.Store.Add(object)
}

func (p *printer) Update(object any) error {
	p.say("update", object)
	return p.Store.Update(object)
}

func (p *printer) Delete(object any) error {
	p.say("delete", object)
	return p.Store.Delete(object)
}

func (p *printer) Replace(objects []any, version string) error {
	names := []string{}
	for _, one := range objects {
		names = append(names, one.(*unstructured.Unstructured).GetName())
	}
	p.out.Encode(change{Op: "replace", Names: names, Version: version})
	return p.Store.Replace(objects, version)
}

func run() error {
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	namespace := flag.String("namespace", "", "of the objects")
	resource := flag.String("resource", "", "sessions, commands or reads")
	fields := flag.String("fields", "", "a field selector")
	page := flag.Int64("page", 0, "objects in one answer to a list; 0 is the reflector's own")
	flag.Parse()

	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return err
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	group := schema.GroupVersionResource{Group: "evidence.chaperone.dev", Version: "v1alpha1", Resource: *resource}
	objects := client.Resource(group).Namespace(*namespace)
	source := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = *fields
			return objects.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = *fields
			return objects.Watch(ctx, options)
		},
	}
	store := &printer{cache.NewStore(cache.MetaNamespaceKeyFunc), json.NewEncoder(os.Stdout)}
	reflector := cache.NewReflectorWithOptions(source, &unstructured.Unstructured{}, store, cache.ReflectorOptions{
		Name: *resource, MinWatchTimeout: time.Minute,
	})
	reflector.WatchListPageSize = *page

	ctx, stop := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	reflector.RunWithContext(ctx)
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
