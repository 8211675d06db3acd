// What a controller of an agent does with client-go, in a pod: the in-cluster configuration, a typed client that writes
// protobuf, an informer, and a program over SPDY. Says what it found, a JSON object a line.
//
//	typed NAMESPACE POD CONTAINER
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/remotecommand"
)

const name = "typed"

func say(op string, more map[string]any) {
	more["op"] = op
	line, err := json.Marshal(more)
	must(err)
	fmt.Println(string(line))
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	namespace, pod, container := os.Args[1], os.Args[2], os.Args[3]
	config, err := rest.InClusterConfig()
	must(err)
	config.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(config)
	must(err)
	events := follow(ctx, client, namespace)
	objects(ctx, client, namespace, events)
	deployments(ctx, client, namespace)
	refused(ctx, client, namespace)
	program(ctx, config, client, namespace, pod, container)
}

// follow starts an informer and gives the changes that it sees of the ConfigMap of our name.
func follow(ctx context.Context, client kubernetes.Interface, namespace string) <-chan string {
	events := make(chan string, 16)
	tell := func(event string, item any) {
		if found, ok := item.(*core.ConfigMap); ok && found.Name == name {
			events <- event + " " + found.Data["a"]
		}
	}
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(namespace))
	informer := factory.Core().V1().ConfigMaps().Informer()
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(item any) { tell("add", item) },
		UpdateFunc: func(_, item any) { tell("update", item) },
		DeleteFunc: func(item any) { tell("delete", item) },
	})
	must(err)
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		log.Fatal("the informer does not become current")
	}
	return events
}

func objects(ctx context.Context, client kubernetes.Interface, namespace string, events <-chan string) {
	maps := client.CoreV1().ConfigMaps(namespace)
	next := func() string {
		select {
		case event := <-events:
			return event
		case <-ctx.Done():
			log.Fatal("the informer hears nothing")
			return ""
		}
	}
	made, err := maps.Create(ctx, &core.ConfigMap{
		ObjectMeta: meta.ObjectMeta{Name: name}, Data: map[string]string{"a": "first"}, BinaryData: map[string][]byte{"b": {0, 255}},
	}, meta.CreateOptions{})
	must(err)
	seen := []string{next()}
	made.Data["a"] = "second"
	_, err = maps.Update(ctx, made, meta.UpdateOptions{})
	must(err)
	seen = append(seen, next())
	zero := int64(0)
	must(maps.Delete(ctx, name, meta.DeleteOptions{GracePeriodSeconds: &zero, Preconditions: &meta.Preconditions{UID: &made.UID}}))
	seen = append(seen, next())
	say("informer", map[string]any{"events": seen})
}

func deployments(ctx context.Context, client kubernetes.Interface, namespace string) {
	none := int32(0)
	labels := map[string]string{"app": name}
	wanted := &apps.Deployment{
		ObjectMeta: meta.ObjectMeta{Name: name},
		Spec: apps.DeploymentSpec{
			Replicas: &none, Selector: &meta.LabelSelector{MatchLabels: labels},
			Template: core.PodTemplateSpec{
				ObjectMeta: meta.ObjectMeta{Labels: labels},
				Spec:       core.PodSpec{Containers: []core.Container{{Name: "c", Image: "i"}}},
			},
		},
	}
	all := client.AppsV1().Deployments(namespace)
	made, err := all.Create(ctx, wanted, meta.CreateOptions{})
	must(err)
	say("deployment", map[string]any{"replicas": *made.Spec.Replicas, "image": made.Spec.Template.Spec.Containers[0].Image})
	must(all.Delete(ctx, name, meta.DeleteOptions{}))
}

func refused(ctx context.Context, client kubernetes.Interface, namespace string) {
	_, err := client.CoreV1().Pods(namespace).Create(ctx, &core.Pod{
		ObjectMeta: meta.ObjectMeta{Name: name},
		Spec:       core.PodSpec{HostPID: true, Containers: []core.Container{{Name: "c", Image: "i"}}},
	}, meta.CreateOptions{})
	say("refused", map[string]any{"forbidden": errors.IsForbidden(err), "error": fmt.Sprint(err)})
}

func program(ctx context.Context, config *rest.Config, client kubernetes.Interface, namespace, pod, container string) {
	asked := client.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("exec").
		VersionedParams(&core.PodExecOptions{
			Container: container, Command: []string{"cat"}, Stdin: true, Stdout: true, Stderr: true,
		}, scheme.ParameterCodec)
	executor, err := remotecommand.NewSPDYExecutor(config, "POST", asked.URL())
	must(err)
	var out, failed bytes.Buffer
	must(executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: strings.NewReader("through"), Stdout: &out, Stderr: &failed}))
	say("program", map[string]any{"out": out.String(), "err": failed.String()})
}
